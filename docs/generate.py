"""Writes the pages that are made from the code: `python docs/generate.py [--check]`.

docs/commands.md: the help of every command. With --check nothing is written, and the exit code is 1 where
a page is stale.
"""

import sys
from pathlib import Path

import click
from click.testing import CliRunner

from paragone.cli.main import COMMANDS, cli

PAGE = Path(__file__).with_name("commands.md")


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


if __name__ == "__main__":
    page = commands_page()
    if "--check" in sys.argv[1:]:
        sys.exit(0 if PAGE.exists() and PAGE.read_text() == page else "docs/commands.md is stale: make docs")
    PAGE.write_text(page)
