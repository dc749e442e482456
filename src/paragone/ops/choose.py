"""Which form of an operation runs: the fast one where there is one, or the reference everywhere."""

import contextlib
import os
from collections.abc import Iterator
from typing import Literal

from paragone.errors import UsageError

Implementation = Literal["auto", "reference"]


def _from_environment() -> Implementation:
    value = os.environ.get("PARAGONE_OPS", "auto")
    if value not in ("auto", "reference"):
        raise UsageError(f"PARAGONE_OPS is {value!r}, not 'auto' or 'reference'")
    return value  # type: ignore[return-value]


_current: Implementation = _from_environment()


def use_fast() -> bool:
    """Whether fast forms may be chosen now."""
    return _current == "auto"


@contextlib.contextmanager
def implementation(which: Implementation) -> Iterator[None]:
    """Within the context every operation runs in the form that `which` names."""
    global _current  # noqa: PLW0603 -- the one switch, for tests and for hunting differences
    before, _current = _current, which
    try:
        yield
    finally:
        _current = before
