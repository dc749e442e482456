"""A comparison as one HTML page that needs nothing but a browser, and as a table for the terminal."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from paragone.compare.rows import COLUMNS, EXPLANATIONS, known_of, rows_of
from paragone.errors import WriteFailed


def write_html(result: dict[str, Any], path: Path) -> None:
    """Writes the report. Without matplotlib it has no plots and says so."""
    write_text(path, html(result))


def html(result: dict[str, Any]) -> str:
    """The report's page."""
    import jinja2

    drawn, no_plots = [], ""
    try:
        from paragone.compare.plots import plots

        drawn = plots(result)
    except ImportError:
        no_plots = "matplotlib is not installed: pip install 'paragone[report]'"
    except Exception as err:  # a plot that fails must not cost the report
        no_plots = f"{type(err).__name__}: {err}"
    candidates = result["candidates"]
    recommendation = result["recommendation"]
    scored: dict[str, Any] = next((c["quality"]["texts"] for c in candidates if c["quality"]), {})
    template = files(__package__).joinpath("report.html").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True)
    return environment.from_string(template).render(
        choice=recommendation["choice"],
        reason=recommendation["reason"],
        otherwise=recommendation["else"],
        rejected=recommendation["rejected"],
        started=result["started"],
        machine=result["machine"],
        settings=result["settings"],
        columns=COLUMNS,
        explanations=EXPLANATIONS,
        rows=rows_of(result),
        plots=drawn,
        no_plots=no_plots,
        texts=list(scored),
        prompts=result["settings"]["prompts"],
        candidates=candidates,
        known={c["model"]: known_of(c) for c in candidates if c["known"]},
        raw=json.dumps(result, indent=1, ensure_ascii=False),
    )


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or none: through a neighbour that is moved into place."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, "utf-8")
        partial.replace(path)
    except OSError as err:
        partial.unlink(missing_ok=True)
        raise WriteFailed(f"{path}: cannot be written: {err.strerror}") from None


def check_writable(folder: Path) -> None:
    """Raises WriteFailed now rather than after minutes of measuring where reports cannot be written."""
    probe = folder / ".paragone-probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as err:
        raise WriteFailed(f"{folder}: cannot be written: {err.strerror}") from None


def print_table(result: dict[str, Any], console: Any) -> None:
    """The table and the recommendation, for people at a terminal."""
    from rich.table import Table

    rows = rows_of(result)
    choice = result["recommendation"]["choice"]
    shown = [(key, title) for key, title in COLUMNS if any(key in row for row in rows)]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for key, title in shown:
        table.add_column(title, justify="left" if key == "model" else "right", no_wrap=key == "model")
    for row in rows:
        if "error" not in row:
            style = "bold green" if row["model"] == choice else ""
            table.add_row(*(_plain(row.get(key, "–")) for key, _ in shown), style=style)
    console.print(table)
    for row in rows:
        if "error" in row:
            console.print(f"{row['model']} failed: {row['error']}", style="red", highlight=False)
    for candidate in result["candidates"]:
        for problem in candidate.get("problems", ()):
            console.print(f"{candidate['label']}: {problem}", style="yellow", highlight=False)
    settings = result["settings"]
    console.print(
        f"\nMedians of {settings['rounds']} × {settings['repetitions']} repetitions (± half their range), "
        f"prompt {settings['prompt_tokens']} tokens, {settings['decode_tokens']} decoded, one sequence.",
        style="dim", highlight=False,
    )  # fmt: skip
    for candidate in {c["model"]: c for c in result["candidates"]}.values():
        known = known_of(candidate)
        if known:
            text = f"{candidate['model']}: {known['Parameters']} parameters, on disk {known['On disk']}, "
            text += (
                f"context {known['Context']}, {known['Licence']}; commercial use: {known['Commercial use']}"
            )
            console.print(text, style="dim", highlight=False)
    recommendation = result["recommendation"]
    console.print()
    console.print(f"Take {choice}" if choice else "Nothing to recommend", style="bold green", highlight=False)
    console.print(f"  {recommendation['reason']}.", highlight=False)
    for line in recommendation["else"]:
        console.print(f"  {line}", highlight=False)
    for label, why in recommendation["rejected"].items():
        console.print(f"  {label} is out: {why}", highlight=False)


def print_answers(result: dict[str, Any], console: Any) -> None:
    """The answers to the user's prompts, side by side."""
    from rich.table import Table

    answering = [c for c in result["candidates"] if c["answers"]]
    for n, prompt in enumerate(result["settings"]["prompts"]):
        table = Table(
            title=_plain(prompt[:200]), title_justify="left", title_style="bold", show_lines=True, expand=True
        )
        for candidate in answering:
            table.add_column(_plain(candidate["label"]), ratio=1, overflow="fold")
        if answering:
            table.add_row(*(_plain(c["answers"][n]["text"]) for c in answering))
            console.print(table)


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text.strip())
