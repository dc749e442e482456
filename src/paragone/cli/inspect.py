"""`paragone inspect`: what a model is, without loading its weights."""

import json

import click


@click.command("inspect")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Everything with the whole spec, machine-readable.")
@click.option("--template", is_flag=True, help="Print the chat template.")
@click.option("--plan", is_flag=True, help="Load it, and say which kernel each operation runs on.")
@click.option("--precision", help="For --plan: fp32, bf16, int8 or int4; default: what the file has.")
def command(model: str, as_json: bool, template: bool, plan: bool, precision: str | None) -> None:
    """Prints what MODEL is: architecture, sizes, memory, text. A file, a folder, a model that is here, or one
    of a hub (hf:OWNER/NAME or a known model's name), of which only the headers are fetched."""
    if plan:
        _print_plan(model, precision, as_json)
        return
    from paragone.cli.shared import printable, report_console
    from paragone.engine.inspect import inspect_model
    from paragone.engine.resolve import peek
    from paragone.errors import NotFound

    with peek(model) as located:
        found = inspect_model(located.path, located.name)
        if located.is_remote:
            found["path"] = located.name
    if as_json:
        click.echo(json.dumps(found, indent=1, ensure_ascii=False))
        return
    text = found["text"]
    if template:
        if not text.get("chat_template"):
            raise NotFound(f"{model} has no chat template: it is a base model that continues text")
        click.echo(printable(text["chat_template"], keep="\n\t"))
        return
    total = found["parameters"]
    by_part = ", ".join(f"{part} {n / total:.0%}" for part, n in found["parameters_by_part"].items())
    stored = ", ".join(f"{count} {kind}" for kind, count in sorted(found["stored_as"].items()))
    memory = ", ".join(f"{p} {size / 1e6:,.0f} MB" for p, size in found["weight_bytes"].items())
    cache, full = (found[f"cache_bytes_{when}"]["bf16"] for when in ("per_token", "when_full"))
    rows = [
        ("family", f"{found['family']} ({found['format']})"),
        ("architecture", found["architecture"]),
        ("parameters", f"{total / 1e6:,.0f} million: {by_part}"),
        ("on disk", f"{found['disk_bytes'] / 1e6:,.0f} MB, tensors: {stored}"),
        ("weights in memory", memory),
        (
            "cache",
            f"{cache:,} bytes a token in bf16, {full / 1e6:,.0f} MB when full",
        ),
        ("context", f"{found['context']:,} tokens"),
        ("left aside", ", ".join(found["ignored_keys"]) or "no key"),
    ]
    if "missing" in text:
        rows.append(("text", text["missing"]))
    else:
        stops = ", ".join(f"{spelling} ({number})" for number, spelling in text["stop_tokens"].items())
        rows += [
            ("vocabulary", f"{text['vocabulary']:,} tokens, {text['special_tokens']} of them special"),
            ("prompts begin with", " ".join(text["prefix"]) or "nothing of their own"),
            ("stops at", stops or "no token: give stop strings"),
            (
                "chat template",
                f"none of its own: the prompt format {text['prompt_format']}"
                if text["prompt_format"]
                else "yes: --template prints it"
                if text["chat_template"]
                else "none: a base model",
            ),
        ]
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for title, value in rows:
        table.add_row(Text(title), Text(printable(value)))
    report_console().print(table)


def _print_plan(name: str, precision: str | None, as_json: bool) -> None:
    from paragone.cli.shared import load, printable, report_console

    loaded = load(name, precision, "cpu", None)
    from paragone.engine.plans import describe_plan

    found = describe_plan(loaded)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    from rich.table import Table
    from rich.text import Text

    if found["why_not"]:
        click.echo(f"{name} at {loaded.precision} runs on PyTorch: {found['why_not']}.")
        return
    where = ", each on a processor of its own" if found["pinned"] else ""
    click.echo(f"kernels: {found['kernels']}, {found['threads']} threads{where}")
    table = Table(box=None, pad_edge=False)
    for title in ("of them", "us each", "ms"):
        table.add_column(title, justify="right")
    table.add_column("operation", overflow="fold")
    for row in found["operations"]:
        whole = row["count"] * row["microseconds"] / 1000
        cells = str(row["count"]), f"{row['microseconds']:.1f}", f"{whole:.3f}", printable(row["operation"])
        table.add_row(*(Text(cell) for cell in cells))
    report_console().print(table)
    total = sum(row["count"] * row["microseconds"] for row in found["operations"]) / 1000
    click.echo(f"one token of one sequence: {total:.2f} ms in the kernels")
