"""`paragone`: finds the command, runs it, and turns every failure into one line and an exit code."""

import errno
import importlib
import os
import sys
from typing import Any

import click

from paragone import __version__
from paragone.errors import NotEnoughMemory, ParagoneError, UsageError, WriteFailed

# Command to (module, one line of help). The modules are imported only when the command runs, so that
# `paragone --help` is instant.
COMMANDS = {
    "compare": ("paragone.cli.compare", "Measure models side by side and say which to take."),
    "chat": ("paragone.cli.chat", "Talk to a model."),
    "generate": ("paragone.cli.generate", "Continue a text."),
    "families": ("paragone.cli.families", "List the architectures that run."),
    "inspect": ("paragone.cli.inspect", "Say what a model is, without loading it."),
    "models": ("paragone.cli.models", "List what is here and what can be pulled."),
    "pull": ("paragone.cli.pull", "Download a model."),
    "rm": ("paragone.cli.rm", "Delete a downloaded model."),
    "runs": ("paragone.cli.runs", "List earlier comparisons, show one, compare with one."),
    "serve": ("paragone.cli.serve", "Serve models to any client of OpenAI's API."),
    "keys": ("paragone.cli.keys", "Make, list and revoke API keys."),
    "top": ("paragone.cli.top", "Watch a server at work."),
    "selftest": ("paragone.cli.selftest", "Prove on this machine what is promised."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's interface
        """The commands' names, in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command of a name, or None."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), "command", None)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The list of commands from their one-line helps, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click's, but an unknown command names the ones that are near it."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UsageError(f"no command {args[0]!r}.{hint} Known: {', '.join(COMMANDS)}.")
        return super().resolve_command(ctx, args)


@click.command(
    cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="paragone")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Paragone compares open-weight language models on your machine and runs them.

    Start with `paragone compare`: it measures two small models in three precisions and says which to take.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """Entry point of the `paragone` command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs a command line and returns its exit code; failures are one line on standard error."""
    try:
        result = cli.main(arguments, prog_name="paragone", standalone_mode=False)
    except click.exceptions.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone, as `head` does
        return 0
    except SystemExit:
        raise
    except BaseException as err:  # Rust's panics are BaseExceptions
        if os.environ.get("PARAGONE_DEBUG"):
            raise
        error = _expected(err)
        sys.stderr.write(f"error: {_one_line(error)}\n")
        return error.exit_code
    return result if isinstance(result, int) else 0


def _expected(err: BaseException) -> ParagoneError:
    """The error as one of ours, with its exit code."""
    if isinstance(err, ParagoneError):
        return err
    if isinstance(err, click.ClickException):
        return UsageError(err.format_message())
    if isinstance(err, MemoryError):
        return NotEnoughMemory("ran out of memory")
    if isinstance(err, OSError) and err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return WriteFailed(f"{err.filename or 'file'}: {err.strerror}")
    if isinstance(err, RuntimeError) and "memory" in str(err).lower():
        return NotEnoughMemory(str(err))
    return ParagoneError(
        f"internal: {type(err).__name__}: {err} (PARAGONE_DEBUG=1 shows where; please report it)"
    )


def _one_line(err: BaseException) -> str:
    """The message on one line, without control characters that could redraw a terminal."""
    from paragone.cli.shared import printable

    return printable(" ".join(str(err).split()))[:2000]
