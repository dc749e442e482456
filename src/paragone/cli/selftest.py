"""`paragone selftest`: proves on this machine what is promised."""

from typing import Any

import click

from paragone.cli.shared import model_options


@click.command("selftest")
@click.argument("what", type=click.Choice(["determinism"]))
@click.argument("model", default="smollm2-135m-instruct")
@model_options
def command(what: str, model: str, **options: Any) -> None:
    """Proves on this machine that a promise holds.

    determinism: in the deterministic mode MODEL's tokens and log-probabilities are the same to the bit,
    whatever is batched, cut, found in the cache or preempted, in any order and on any number of threads;
    then says what that costs.
    """
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from paragone.cli.shared import error_console, load
    from paragone.engine.selftest import determinism, price
    from paragone.errors import ParagoneError

    loaded = load(model, options["precision"], options["device"], options["threads"])
    bad = 0
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False)
    with Progress(*columns, console=error_console(), transient=True) as bar:
        bar.add_task(f"{what} of {loaded.name} {loaded.precision}")
        for finding in determinism(loaded):
            bad += finding.same < finding.answers
            mark = "same" if finding.same == finding.answers else "DIFFERENT"
            click.echo(f"{mark:<10} {finding.same} of {finding.answers} answers  {finding.what}")
        click.echo(f"price      {price(loaded):.2f} x the time of the usual mode")
    if bad:
        raise ParagoneError(f"{what}: {bad} of the comparisons differ")
