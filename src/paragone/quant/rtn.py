"""Round-to-nearest quantisation to four bits, row by row, so that a matrix can be quantised while it is read.

Scales and minima are rounded first, as they will be kept, and the codes are chosen for the rounded ones, so
that what the products use is what the error was minimised for.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from paragone.kernels import native
from paragone.ops.packed import PackedMatrix, Packing, as_stored
from paragone.ops.threads import threads

# Minima are as large as weights: in this unit they and scales keep what float16 can hold.
INT4 = Packing(4, has_minimum=True, unit=2.0**-5)
SMALLEST = 2.0**-24  # above zero in float16


def quantize_int4(rows_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Float rows to codes (N, D), scales and minima (N, G) as `INT4` keeps them."""
    groups = _groups(rows_ND, INT4.group)
    low, high = groups.aminmax(dim=2)
    low = INT4.rounded(low)
    scale = INT4.rounded((high - low) / 15).clamp_min(SMALLEST * INT4.unit)
    codes = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15)
    return codes.to(torch.uint8).flatten(1)[:, : rows_ND.shape[1]], scale, low


def put_rounded(matrix: PackedMatrix, first: int, rows_ND: Tensor) -> None:
    """Rows from `first` on of a matrix in `INT4` become these, quantised."""
    if not rounds("F32") or matrix.panels.device.type != "cpu":
        matrix.put(first, *quantize_int4(rows_ND))
        return
    rows, kind = as_stored(rows_ND)
    round_stored(matrix, kind, first, rows.data_ptr(), np.arange(len(rows)))


def rounds(kind: str) -> bool:
    """Whether the kernels quantise tensors of one of a file's types where they lie."""
    return native is not None and kind in ("BF16", "F32")


def round_stored(matrix: PackedMatrix, kind: str, first: int, raw: int, order: NDArray[np.int64]) -> None:
    """The rows `order` of such a tensor, which begins at an address, become rows `first` and on, rounded."""
    assert native is not None  # noqa: S101 -- `rounds` has said so
    native.round_rows(
        matrix.packing.native, matrix.panels.data_ptr(), matrix.width, first, len(order), raw,
        order.ctypes.data, kind == "BF16", threads(),
    )  # fmt: skip


def _groups(rows_ND: Tensor, group: int) -> Tensor:
    """(N, G, group) in float32; a last, shorter group is filled up with its own last number."""
    rows = rows_ND.float()
    missing = -rows.shape[1] % group
    if missing:
        rows = F.pad(rows[:, None], (0, missing), mode="replicate")[:, 0]
    return rows.reshape(len(rows), -1, group)
