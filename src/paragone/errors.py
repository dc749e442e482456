"""Every error that Paragone raises on purpose, and the exit code each one means.

The codes follow sysexits(3), so that scripts can tell a wrong flag from a missing file:

    ParagoneError          70  something inside went wrong
    |- UsageError           2  the command line or the call is wrong
    |- MalformedData       65  a file is not what it says it is
    |- NotFound            66  no such model, file or run
    |- Unavailable         69  a source cannot be reached
    |- NotEnoughMemory     71  the work does not fit; the message says how much it needs
    |- WriteFailed         74  the disk is full or a file cannot be written
    |- Refused             77  refused for safety
    `- BadConfiguration    78  a configuration asks for something that is not supported

A message says what was asked, what was found and what to do, on one line.
"""


class ParagoneError(Exception):
    """Base of all expected failures; `exit_code` is what the command line returns."""

    exit_code = 70


class UsageError(ParagoneError):
    """The command line or the call itself is wrong."""

    exit_code = 2


class ContextLengthExceeded(UsageError):
    """Prompt and answer do not fit into the model's context."""


class MalformedData(ParagoneError):
    """A file's content breaks the rules of its format."""

    exit_code = 65


class TemplateError(MalformedData):
    """A chat template failed, or refused the conversation."""


class TemplateLimit(TemplateError):
    """A chat template used more time, memory or output than it may."""


class NotFound(ParagoneError):
    """A named model, file or run does not exist."""

    exit_code = 66


class Unavailable(ParagoneError):
    """A source (model hub, package index) cannot be reached or refuses."""

    exit_code = 69


class NotEnoughMemory(ParagoneError):
    """The work needs more memory than there is."""

    exit_code = 71


class WriteFailed(ParagoneError):
    """A file could not be written: no space, no permission."""

    exit_code = 74


class Refused(ParagoneError):
    """Refused for safety: code in checkpoints, pickles, paths that lead outside."""

    exit_code = 77


class BadConfiguration(ParagoneError):
    """A model's configuration asks for what is not known or not supported."""

    exit_code = 78


def message_of(err: BaseException) -> str:
    """What went wrong, in a line: our own errors say it, of others the kind is part of it."""
    return str(err) if isinstance(err, ParagoneError) else f"{type(err).__name__}: {err}"
