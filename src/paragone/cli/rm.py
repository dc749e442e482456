"""`paragone rm`: deletes downloaded models."""

import click


@click.command("rm")
@click.argument("names", nargs=-1, required=True)
def command(names: tuple[str, ...]) -> None:
    """Deletes the models NAMES, what is left of broken downloads of them, and their packed weights."""
    from paragone.checkpoint.packed_file import sweep
    from paragone.checkpoint.store import remove
    from paragone.errors import ParagoneError

    failed: ParagoneError | None = None
    for name in names:  # one wrong name does not keep the others
        try:
            click.echo(f"{name}: {remove(name) / 1e6:.0f} MB freed")
        except ParagoneError as err:
            failed = failed or err
    if freed := sweep():
        click.echo(f"packed weights of models that are gone: {freed / 1e6:.0f} MB freed")
    if failed:
        raise failed
