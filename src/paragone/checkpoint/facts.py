"""What a checkpoint's configuration says, read so that nothing in it goes unnoticed.

`Facts` wraps `config.json` or GGUF metadata. Each value is taken by name, with its type and bounds
checked; at the end every key must have been taken or be known to have no effect on the model.
"""

import difflib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paragone.errors import BadConfiguration, MalformedData

_MISSING: Any = object()


class Facts:
    """A configuration's values and the names that have been taken from it."""

    def __init__(self, path: Path, values: dict[str, Any], prefix: str = "") -> None:
        self.path, self.values, self.prefix = path, values, prefix
        self.taken: set[str] = set()
        self.ignored: list[str] = []  # after `finish`: what is known to change nothing

    def fail(self, key: str, reason: str) -> MalformedData:
        return MalformedData(f"{self.path}: {self.prefix}{key} {reason}")

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.values.get(self.prefix + key) is not None

    def raw(self, key: str, default: Any = _MISSING) -> Any:
        """The value as it is; null counts as absent. Raises MalformedData where it is required."""
        self.taken.add(self.prefix + key)
        value = self.values.get(self.prefix + key)
        if value is not None:
            return value
        if default is _MISSING:
            raise self.fail(key, "is missing")
        return default

    def integer(self, key: str, default: Any = _MISSING, *, least: int = 1, most: int = 1 << 31) -> Any:
        """A whole number in [least, most]."""
        value = self.raw(key, default)
        if value is default and value is not _MISSING:
            return value
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(key, f"is {_short(value)}, not a whole number")
        if not least <= value <= most:
            raise self.fail(key, f"is {_short(value)}, not between {least} and {most}")
        return value

    def number(self, key: str, default: Any = _MISSING, *, positive: bool = True) -> Any:
        """A finite number."""
        value = self.raw(key, default)
        if value is default and value is not _MISSING:
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(key, f"is {_short(value)}, not a number")
        value = float(value)
        if not math.isfinite(value) or abs(value) > 1e30 or (positive and value <= 0):
            raise self.fail(key, f"is {value}, not a usable number")
        return value

    def flag(self, key: str, default: Any = _MISSING) -> bool:
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, f"is {_short(value)}, not true or false")
        return value

    def text(self, key: str, default: Any = _MISSING) -> Any:
        value = self.raw(key, default)
        if value is default and value is not _MISSING:
            return value
        if not isinstance(value, str):
            raise self.fail(key, f"is {_short(value)}, not a text")
        return value

    def sub(self, key: str) -> "Facts":
        """The object under a key, as facts of its own; empty where it is absent."""
        value = self.raw(key, {})
        if not isinstance(value, dict):
            raise self.fail(key, f"is {_short(value)}, not an object")
        return Facts(self.path, value)

    def expect(self, key: str, *allowed: Any) -> None:
        """Accepts a key only with values that change nothing; anything else is refused by name."""
        value = self.raw(key, None)
        if value is not None and not any(_equal(value, a) for a in allowed):
            raise BadConfiguration(
                f"{self.path}: {self.prefix}{key} = {_short(value)} is not supported "
                f"(only {' or '.join(map(repr, allowed))})"
            )

    def finish(self, ignored: Iterable[str], ignored_prefixes: tuple[str, ...] = ()) -> None:
        """Raises BadConfiguration for the first key that is neither taken nor known to be harmless."""
        known = self.taken | set(ignored)
        self.ignored = [k for k in self.values if k not in self.taken and k in known]
        unknown = [k for k in self.values if k not in known and not k.startswith(ignored_prefixes)]
        if unknown:
            near = difflib.get_close_matches(unknown[0][:64], known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise BadConfiguration(
                f"{self.path}: unknown key {', '.join(map(_short, unknown[:3]))}: it may change the model, "
                f"and Paragone does not know how{hint}"
            )


def _equal(value: Any, allowed: Any) -> bool:
    """Equality of plain values; arrays are equal to none."""
    return isinstance(value, str | int | float | bool) and bool(value == allowed)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
