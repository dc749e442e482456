"""Which form of an operation runs: a kernel, PyTorch's fast form, or the reference everywhere."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from paragone.errors import UsageError
from paragone.kernels import native

Implementation = Literal["auto", "torch", "reference"]
IMPLEMENTATIONS = ("auto", "torch", "reference")


def _from_environment() -> Implementation:
    value = os.environ.get("PARAGONE_OPS", "auto")
    if value not in IMPLEMENTATIONS:
        raise UsageError(f"PARAGONE_OPS is {value!r}, not {', '.join(IMPLEMENTATIONS)}")
    return value  # type: ignore[return-value]


_current: Implementation = _from_environment()


def use_fast() -> bool:
    """Whether fast forms may be chosen now."""
    return _current != "reference"


def has_kernels() -> bool:
    """Whether compiled kernels may be chosen now."""
    return native is not None and _current == "auto"


def kernels_for(x: Tensor) -> Any:
    """The compiled kernels, or None where they do not take such a tensor: they compute in bfloat16, on the
    CPU, and know no gradients."""
    if _current != "auto" or x.dtype != torch.bfloat16 or x.device.type != "cpu" or torch.is_grad_enabled():
        return None
    return native


def describe_kernels() -> str:
    """The instruction level that the kernels use here, or why there are none."""
    if native is None:
        return "none (not compiled; PyTorch alone, slower)"
    if _current != "auto":
        return f"none (PARAGONE_OPS={_current})"
    return str(native.level) if native.has_threads else f"{native.level}, one thread (built without OpenMP)"


@contextlib.contextmanager
def implementation(which: Implementation) -> Iterator[None]:
    """Within the context every operation runs in the form that `which` names."""
    global _current  # noqa: PLW0603 -- the one switch, for tests and for hunting differences
    before, _current = _current, which
    try:
        yield
    finally:
        _current = before
