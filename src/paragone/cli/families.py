"""`paragone families`: the architectures that run, and the known models of each."""

import json

import click


@click.command("families")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def command(as_json: bool) -> None:
    """Lists the families that Paragone runs: their names in files, and the catalogue's models of each."""
    from paragone.catalog.catalog import models
    from paragone.cli.shared import report_console
    from paragone.model.families import known_families

    listed = [
        {
            "family": title,
            "hf": list(names["hf"]),
            "gguf": list(names["gguf"]),
            "models": [m.name for m in models().values() if m.family in {*names["hf"], *names["gguf"]}],
        }
        for title, names in known_families().items()
    ]
    if as_json:
        click.echo(json.dumps(listed, indent=1))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table("Family", "config.json", "GGUF", "Known models", box=None, header_style="bold")
    for row in listed:
        lists = (", ".join(row[key]) or "–" for key in ("hf", "gguf", "models"))
        table.add_row(*map(Text, (str(row["family"]), *lists)))
    report_console().print(table)
