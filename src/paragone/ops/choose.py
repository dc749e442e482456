"""Which form of an operation runs: a kernel, PyTorch's fast form, or the reference everywhere."""

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Literal

from paragone.errors import UsageError
from paragone.kernels import native

Implementation = Literal["auto", "torch", "reference"]
IMPLEMENTATIONS = ("auto", "torch", "reference")  # that the environment may name


def _from_environment() -> Implementation:
    value = os.environ.get("PARAGONE_OPS", "auto")
    if value not in IMPLEMENTATIONS:
        raise UsageError(f"PARAGONE_OPS is {value!r}, not {', '.join(IMPLEMENTATIONS)}")
    return value  # type: ignore[return-value]


def _check_level() -> None:
    """Raises UsageError where PARAGONE_KERNELS names an instruction level that there is not."""
    wanted = os.environ.get("PARAGONE_KERNELS")
    if wanted and native is not None and wanted != native.level:
        raise UsageError(f"PARAGONE_KERNELS is {wanted!r}; this machine has {', '.join(native.levels)}")


_check_level()


class _Current(threading.local):
    """Each thread's own choice: engines of several kinds may step at the same time."""

    which: Implementation = _from_environment()


_current = _Current()


def use_fast() -> bool:
    """Whether fast forms may be chosen now."""
    return _current.which != "reference"


def kernels_wanted() -> bool:
    """Whether plans of the compiled kernels may run now, where there are kernels."""
    return _current.which == "auto"


def kernels_here() -> bool:
    """Whether there are kernels, and they are wanted now."""
    return native is not None and kernels_wanted()


def describe_kernels() -> str:
    """The instruction level that the kernels use here, or why there are none."""
    if native is None:
        return "none (not compiled; PyTorch alone, slower)"
    if _current.which != "auto":
        return f"none (PARAGONE_OPS={_current.which})"
    refused = ", ".join(native.refused_levels)
    return f"{native.level} (not {refused}: its products are wrong here)" if refused else f"{native.level}"


@contextlib.contextmanager
def implementation(which: Implementation) -> Iterator[None]:
    """Within the context every operation of this thread runs in the form that `which` names."""
    before, _current.which = _current.which, which
    try:
        yield
    finally:
        _current.which = before
