"""`paragone models`: what is here, and what the catalogue knows."""

import json

import click


@click.command("models")
@click.option("--here", is_flag=True, help="Only what is on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def command(here: bool, as_json: bool) -> None:
    """Lists the models on this machine and those that `paragone pull` knows by name."""
    from paragone.catalog.catalog import models
    from paragone.checkpoint.store import describe, stored_models

    stored = {m.name: m for m in stored_models()}
    known = models()
    if as_json:
        out = {"here": [describe(m) for m in stored.values()]}
        if not here:
            out["catalogue"] = [
                {
                    "name": m.name,
                    "title": m.title,
                    "family": m.family,
                    "kind": m.kind,
                    "parameters": m.parameters,
                    "context": m.context,
                    "licence": m.licence.title,
                    "commercial": m.licence.commercial,
                    "languages": list(m.languages),
                    "sources": [s.uri for s in m.sources],
                }
                for m in known.values()
            ]
        click.echo(json.dumps(out, indent=1))
        return
    from rich.table import Table
    from rich.text import Text

    from paragone.cli.shared import report_console

    console = report_console()
    if stored:
        table = Table("On this machine", "MB", "Source", "Pulled", box=None, header_style="bold")
        table.columns[1].justify = "right"
        for model in stored.values():
            source = model.source if len(model.source) < 60 else model.source[:57] + "..."
            table.add_row(*map(Text, (model.name, f"{model.bytes / 1e6:.0f}", source, model.pulled[:10])))
        console.print(table)
    else:
        console.print("No models on this machine yet: `paragone pull smollm2-135m-instruct` gets one.")
    if here:
        return
    table = Table("Catalogue", "Parameters", "Context", "Family", "Kind", "Licence", "Commercial use",
                  box=None, header_style="bold")  # fmt: skip
    for column in (1, 2):
        table.columns[column].justify = "right"
    for entry in known.values():
        size = (
            f"{entry.parameters / 1e9:.1f} B"
            if entry.parameters >= 1e9
            else f"{entry.parameters / 1e6:.0f} M"
        )
        name = entry.name if entry.sources else f"{entry.name} (no open download)"
        style = "bold" if entry.name in stored else ""
        licence = entry.licence
        table.add_row(
            name, size, f"{entry.context:,}", entry.family, entry.kind, licence.title, licence.commercial,
            style=style,
        )  # fmt: skip
    console.print()
    console.print(table)
