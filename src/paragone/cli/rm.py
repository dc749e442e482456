"""`paragone rm`: deletes downloaded models."""

import click


@click.command("rm")
@click.argument("names", nargs=-1, required=True)
def command(names: tuple[str, ...]) -> None:
    """Deletes the models NAMES, and what is left of broken downloads of them."""
    from paragone.checkpoint.store import remove

    for name in names:
        click.echo(f"{name}: {remove(name) / 1e6:.0f} MB freed")
