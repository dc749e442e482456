"""Writes the pages that are made from the code: `python -m docs.generate [--check]`.

docs/commands.md, the help of every command, and docs/families.md. With --check nothing is written, and the
exit code is 1 where a page is stale.
"""

import sys
from pathlib import Path

import click
from click.testing import CliRunner
from docs.families import families_page

from paragone.cli.main import COMMANDS, cli

DOCS = Path(__file__).parent


def help_of(*arguments: str) -> str:
    """What `paragone ARGUMENTS --help` prints, 90 columns wide."""
    runner = CliRunner()
    result = runner.invoke(cli, [*arguments, "--help"], prog_name="paragone", terminal_width=90)
    return result.output.rstrip()


def commands_page() -> str:
    """docs/commands.md."""
    parts = ["# Commands\n", "Made from the code by `make docs`.\n", f"```\n{help_of()}\n```\n"]
    for name in COMMANDS:
        parts.append(f"## paragone {name}\n\n```\n{help_of(name)}\n```\n")
        command = cli.get_command(click.Context(cli), name)
        if isinstance(command, click.Group):
            for sub in command.commands:
                parts.append(f"### paragone {name} {sub}\n\n```\n{help_of(name, sub)}\n```\n")
    return "\n".join(parts)


PAGES = {"commands.md": commands_page, "families.md": families_page}

if __name__ == "__main__":
    stale = []
    for name, make in PAGES.items():
        page, path = make(), DOCS / name
        if not path.exists() or path.read_text() != page:
            stale.append(name)
            if "--check" not in sys.argv[1:]:
                path.write_text(page)
    if stale and "--check" in sys.argv[1:]:
        sys.exit(f"stale: {', '.join(stale)}: make docs")
