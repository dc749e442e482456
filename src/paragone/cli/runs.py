"""`paragone runs`: the comparisons made on this machine."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click


@click.group("runs", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Lists earlier comparisons, newest first. `runs show` prints one, `runs diff` sets two side by side."""
    if ctx.invoked_subcommand:
        return
    from rich.table import Table
    from rich.text import Text

    from paragone.cli.shared import report_console
    from paragone.compare.history import list_runs

    runs = list_runs()
    if as_json:
        click.echo(json.dumps(runs, indent=1))
        return
    if not runs:
        click.echo("no runs yet: `paragone compare` makes the first")
        return
    table = Table("Run", "Started", "Choice", "Candidates", box=None, header_style="bold")
    for run in runs:
        table.add_row(
            *map(Text, (str(run["id"]), run["started"], run["choice"] or "none", run["candidates"]))
        )
    report_console().print(table)


@command.command("show")
@click.argument("number", type=click.IntRange(1, 1 << 62), required=False)
@click.option("--json", "as_json", is_flag=True, help="The whole result with its raw samples.")
@click.option("--html", type=click.Path(path_type=Path), help="Write the report again, to this file.")
def show(number: int | None, as_json: bool, html: Path | None) -> None:
    """Prints run NUMBER, or the newest."""
    from paragone.cli.shared import report_console
    from paragone.compare.history import load_run
    from paragone.compare.report import print_answers, print_table, write_html

    result = load_run(number)
    if html:
        write_html(result, html)
        click.echo(str(html))
    elif as_json:
        click.echo(json.dumps(result, indent=1))
    else:
        console = report_console()
        console.print(f"run {result['id']}, {result['started']}, {result['machine']['cpu']}", style="dim")
        print_table(result, console)
        print_answers(result, console)


@command.command("diff")
@click.argument("first", type=click.IntRange(1, 1 << 62))
@click.argument("second", type=click.IntRange(1, 1 << 62), required=False)
def diff(first: int, second: int | None) -> None:
    """Sets run FIRST and run SECOND (or the newest) side by side: what changed beyond the noise."""
    from rich.table import Table
    from rich.text import Text

    from paragone.cli.shared import report_console
    from paragone.compare.history import load_run

    old, new = load_run(first), load_run(second)
    console = report_console()
    for what in ("machine", "settings"):
        for key in old[what].keys() | new[what].keys():
            before, after = old[what].get(key), new[what].get(key)
            if before != after:
                console.print(f"{what} differs: {key} was {before}, is {after}", style="yellow")
    table = Table("Candidate", "Measure", f"Run {old['id']}", f"Run {new['id']}", "Change",
                  box=None, header_style="bold")  # fmt: skip
    earlier: dict[str, Any] = {c["label"]: c for c in old["candidates"]}
    notes = [
        f"{label} is only in run {old['id']}"
        for label in earlier.keys() - {c["label"] for c in new["candidates"]}
    ]
    for candidate in new["candidates"]:
        label, before = candidate["label"], earlier.get(candidate["label"])
        if before is None:
            notes.append(f"{label} is only in run {new['id']}")
            continue
        failed = [(run["id"], c["error"]) for run, c in ((old, before), (new, candidate)) if c["error"]]
        notes += [f"{label} failed in run {number}: {why}" for number, why in failed]
        if not failed:
            for row in _changes(before, candidate):
                table.add_row(Text(label), *row)
                label = ""
    console.print(table)
    for note in notes:
        console.print(note, style="yellow", highlight=False, markup=False)


MEASURES = (
    ("decode_tokens_per_s", "decode tok/s", 1.0),
    ("prefill_tokens_per_s", "prefill tok/s", 1.0),
    ("ttft_s", "first token s", 1.0),
    ("load_s", "load s", 1.0),
    ("start_s", "start s", 1.0),
    ("peak_memory_bytes", "peak MB", 1e-6),
)


def _changes(before: dict[str, Any], after: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Measure, earlier, later, change: of everything that both runs measured."""
    from paragone.compare.recommend import same_scores
    from paragone.compare.statistics import differ, spread

    for key, title, scale in MEASURES:
        if key in before["samples"] and key in after["samples"]:
            a = [s * scale for s in before["samples"][key]]
            b = [s * scale for s in after["samples"][key]]
            change = f"{spread(b).median / spread(a).median - 1:+.1%}" if differ(a, b) else "no difference"
            yield title, f"{spread(a).median:.4g}", f"{spread(b).median:.4g}", change
    old, new = before["quality"], after["quality"]
    if old and new:
        a, b = old["bits_per_byte"], new["bits_per_byte"]
        same = same_scores(old["texts"], new["texts"])
        yield "bits per byte", f"{a:.4f}", f"{b:.4f}", "no difference" if same else f"{b / a - 1:+.2%}"
    for key, title in (("kl_mean", "KL to best"), ("top1_agreement", "same top-1")):
        if key in old and key in new:
            same = abs(new[key] - old[key]) < 1e-9
            yield (
                title,
                f"{old[key]:.4f}",
                f"{new[key]:.4f}",
                "the same" if same else f"{new[key] - old[key]:+.4f}",
            )
