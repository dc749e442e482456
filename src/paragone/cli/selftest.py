"""`paragone selftest`: proves on this machine what is promised."""

from typing import Any

import click

from paragone.cli.shared import model_options

MOST_LOSS = 0.01  # of bits per byte, by a cache in eight bits


@click.command("selftest")
@click.argument("what", type=click.Choice(["determinism", "cache"]))
@click.argument("model", default="smollm2-135m-instruct")
@model_options
def command(what: str, model: str, **options: Any) -> None:
    """Proves on this machine that a promise holds.

    determinism: in the deterministic mode MODEL's tokens and log-probabilities are the same to the bit,
    whatever is batched, cut, found in the cache or preempted, in any order and on any number of threads;
    then says what that costs.

    cache: what keeping keys and values in eight bits saves and costs, as bits per byte of the texts that
    come with Paragone.
    """
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from paragone.cli.shared import error_console, load

    loaded = load(
        model,
        options["precision"],
        options["device"],
        options["threads"],
        keep_packed=options["keep_packed"],
    )
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False)
    with Progress(*columns, console=error_console(), transient=True) as bar:
        bar.add_task(f"{what} of {loaded.name} {loaded.precision}")
        {"determinism": _determinism, "cache": _cache}[what](loaded)


def _determinism(model: Any) -> None:
    from paragone.engine.selftest import determinism, price
    from paragone.errors import ParagoneError

    bad = 0
    for finding in determinism(model):
        bad += finding.same < finding.answers
        mark = "same" if finding.same == finding.answers else "DIFFERENT"
        click.echo(f"{mark:<10} {finding.same} of {finding.answers} answers  {finding.what}")
    click.echo(f"price      {price(model):.2f} x the time of the usual mode")
    if bad:
        raise ParagoneError(f"determinism: {bad} of the comparisons differ")


def _cache(model: Any) -> None:
    from paragone.compare.cache import cache_quality
    from paragone.compare.measure import bundled_texts
    from paragone.errors import ParagoneError

    plain, eight = cache_quality(model, "\n\n".join(bundled_texts().values()))
    loss = eight.bits_per_byte / plain.bits_per_byte - 1
    for name, kind in ((str(model.decoder.dtype).removeprefix("torch."), plain), ("8 bits", eight)):
        sizes = f"{kind.bytes_per_token:10,.0f} bytes a token  {kind.bits_per_byte:.5f} bits per byte"
        click.echo(f"{name:<10}{sizes}{f'  ({loss:+.2%})' if kind is eight else ''}")
    if loss > MOST_LOSS:
        raise ParagoneError(
            f"cache: eight bits cost {loss:.2%} in bits per byte, {MOST_LOSS:.0%} at most are promised"
        )
