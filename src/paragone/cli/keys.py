"""`paragone keys`: who may ask a server, and how much."""

import time
from typing import Any

import click


@click.group("keys")
def command() -> None:
    """API keys of `paragone serve --keys`: only their hashes are kept."""


@command.command("create")
@click.argument("name")
@click.option("--requests-per-minute", type=click.IntRange(1), help="The most requests in a minute.")
@click.option(
    "--tokens-per-minute", type=click.IntRange(1), help="The most tokens, prompts and answers, in a minute."
)
@click.option("--concurrent", type=click.IntRange(1), help="The most requests at once.")
def create(name: str, **limits: Any) -> None:
    """Makes a key and prints it, once. Running servers take it within a second."""
    from paragone.cli.shared import error_console
    from paragone.serve.keys import KeyStore

    text, key = KeyStore().create(name, **limits)
    click.echo(text)
    error_console().print(f"key {key.id} ({name}): keep it now, it is shown this once")


@command.command("list")
def show() -> None:
    """Lists the keys, what each may do and what was used with it."""
    from rich.table import Table

    from paragone.cli.shared import printable, report_console
    from paragone.serve.keys import KeyStore

    store = KeyStore()
    usage = store.usage()
    table = Table("Key", "Name", "Made", "State", "Limits", "Requests", "Prompt tokens", "Answer tokens")
    for key in store.all():
        words = (
            (key.requests_per_minute, "requests/min"),
            (key.tokens_per_minute, "tokens/min"),
            (key.concurrent, "at once"),
        )
        allowed = ", ".join(f"{most:,} {word}" for most, word in words if most is not None) or "none"
        made = time.strftime("%Y-%m-%d", time.localtime(key.created))
        used = usage.get(key.id)
        counts = (0, 0, 0) if used is None else (used.requests, used.prompt_tokens, used.completion_tokens)
        state = "valid" if key.revoked is None else "revoked"
        table.add_row(key.id, printable(key.name), made, state, allowed, *(f"{count:,}" for count in counts))
    report_console().print(table)


@command.command("revoke")
@click.argument("key")
def revoke(key: str) -> None:
    """Revokes a key by its id, the beginning of it, or its name. Running servers refuse it within a
    second."""
    from paragone.serve.keys import KeyStore

    gone = KeyStore().revoke(key)
    click.echo(f"revoked {gone.id} ({gone.name})")
