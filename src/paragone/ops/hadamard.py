"""Weights in eight bits with one scale for each row, and what they mean.

Runs of 64 inputs are multiplied by the Hadamard matrix H of 64 rows of ones and minus ones: rows when they
are packed, activations when they are quantised. H H = 64, so that x w = (H x) (H w) / 64; and what was one
large number becomes 64 of usual size, so that a row does with one scale, and so does a token (compare
QuaRot, arXiv:2404.00456). Products are then sums of integers from the first input to the last.

Sixteen rows are a panel: a line of the rows' scales in float32, then for every four inputs the sixteen rows'
codes, plus 128.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from paragone.kernels import native
from paragone.ops.packed import PANEL, as_stored, check_rows, empty_panels
from paragone.ops.threads import threads

RUN = 64  # inputs
SCALES = 4 * PANEL  # bytes
CENTER = 128  # the code that means zero
MOST = 127  # of a code's size
# The widest matrix: sums of products of codes, which are stored as up to 255, stay within 32 bits.
MOST_WIDTH = (2**31 - 1) // ((MOST + CENTER) * MOST) // RUN * RUN


def turned(rows_ND: Tensor) -> Tensor:
    """H times each run of 64 numbers, in float32, padded to whole runs: sums and differences of those that
    are 32 apart, then of those 16 apart, and so on; the kernels take the same steps."""
    x = F.pad(rows_ND.float(), (0, -rows_ND.shape[-1] % RUN))
    shape, step = x.shape, RUN // 2
    while step:
        low, high = x.reshape(*shape[:-1], -1, 2, step).unbind(-2)
        x = torch.stack((low + high, low - high), dim=-2).reshape(shape)
        step //= 2
    return x


class HadamardMatrix:
    """(rows, width) in this layout: `panels` is (panels, bytes) of uint8."""

    is_exact = False

    def __init__(self, rows: int, width: int, panels: Tensor | None = None) -> None:
        """Without panels all rows are still to be put. ValueError where it is too wide."""
        if width > MOST_WIDTH:
            raise ValueError(f"{width} inputs are more than sums of 32 bits can hold: {MOST_WIDTH}")
        self.rows, self.width = rows, width
        self.panels = empty_panels(rows, self.shape(rows, width)) if panels is None else panels

    @staticmethod
    def shape(rows: int, width: int) -> tuple[int, int]:
        """Of a matrix's panels."""
        return -(-rows // PANEL), PANEL * RUN * -(-width // RUN) + SCALES

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes

    def to(self, device: torch.device) -> "HadamardMatrix":
        """Itself, moved."""
        self.panels = self.panels.to(device)
        return self

    def __len__(self) -> int:
        return self.rows

    def put(self, first: int, rows_ND: Tensor) -> None:
        """Rows from `first` on become these floats, rounded to the nearest."""
        if native is None or self.panels.device.type != "cpu":
            self._put(first, rows_ND)
            return
        rows, kind = as_stored(rows_ND)
        self.put_stored(kind, first, rows.data_ptr(), np.arange(len(rows)))

    def put_stored(self, kind: str, first: int, address: int, order: NDArray[np.int64]) -> None:
        """Rows from `first` on become the rows `order` of a matrix of F32 or BF16, which begins at an address
        and need not be aligned. Needs the kernels."""
        assert native is not None  # noqa: S101 -- callers ask first
        native.hadamard_rows(
            self.panels.data_ptr(), self.width, first, len(order), address, order.ctypes.data, kind == "BF16",
            threads(),
        )  # fmt: skip

    def _put(self, first: int, rows_ND: Tensor) -> None:
        """`put` without kernels: defines the codes."""
        x = turned(rows_ND.to(self.panels.device))
        scale = x.abs().amax(1) / MOST
        codes = (x / scale[:, None]).round().clamp(-MOST, MOST).where(scale[:, None] > 0, 0)
        n = torch.arange(first, first + len(x), device=x.device)
        stored = (codes + CENTER).to(torch.uint8).reshape(len(x), -1, 4)
        self._codes()[n // PANEL, :, n % PANEL] = stored
        self._scales()[n // PANEL, n % PANEL] = scale

    def rows_of(self, ids: Sequence[int]) -> Tensor:
        """The rows with these numbers (N, width) in float32; IndexError where there is none such."""
        check_rows(ids, self.rows)
        return torch.cat([self.dequantize(i, i + 1) for i in ids])

    def _codes(self) -> Tensor:
        """A view (panels, quads, lanes, 4)."""
        return self.panels[:, SCALES:].view(len(self.panels), -1, PANEL, 4)

    def _scales(self) -> Tensor:
        """A view (panels, lanes) in float32."""
        return self.panels[:, :SCALES].view(torch.float32)

    def turned_rows(self, first: int = 0, last: int | None = None) -> Tensor:
        """Rows [first, last) in float32 as they are kept: turned, padded to whole runs."""
        last = self.rows if last is None else last
        panels = slice(first // PANEL, -(-last // PANEL))
        codes = self._codes()[panels].transpose(1, 2).flatten(2).float() - CENTER  # (panels, lanes, inputs)
        begin = first - panels.start * PANEL
        return (codes * self._scales()[panels][..., None]).flatten(0, 1)[begin : begin + last - first]

    def dequantize(self, first: int = 0, last: int | None = None) -> Tensor:
        """Rows [first, last) in float32. Defines what the bytes mean."""
        rows = self.turned_rows(first, last)
        return (turned(rows) / RUN)[:, : self.width]
