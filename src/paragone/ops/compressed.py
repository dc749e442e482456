"""Weights in bfloat16 as the kernels keep them: in twelve bits a number, without loss.

Sixteen rows are a panel: a line of 64 bytes that begins with the sixteen upper bytes of which the panel's
numbers have one; then blocks of eight inputs, each a line of codes for the upper bytes, four bits each, and
two lines of lower bytes (`kernels/compress.h` has the order of the bytes). Numbers with another upper byte
are outliers: in the panel's list as block (int32), row and input (a byte each) and bits. Lists go by blocks
and end with a block that there is not.

The exponents of a trained weight are few, so outliers are some in ten thousand; the weights take three
quarters of their memory, and a token that is bound by reading them comes sooner (compare DFloat11,
arXiv:2504.11651).
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paragone.kernels import native
from paragone.ops import pages
from paragone.ops.choose import kernels_here
from paragone.ops.packed import PANEL, check_rows
from paragone.ops.threads import threads

INPUTS = 8  # of a block
LINE = 64  # bytes
OUTLIER = np.dtype([("block", "<i4"), ("row", "u1"), ("input", "u1"), ("bits", "<u2")])
END = 2**31 - 1  # the block of a list's last entry


def compresses(device: torch.device) -> bool:
    """Whether weights in bfloat16 are kept so: where the kernels multiply them."""
    return device.type == "cpu" and kernels_here()


class CompressedMatrix:
    """(rows, width) of bfloat16: `panels` (panels, bytes) of uint8, where in `outliers` (N) each panel's list
    begins, `lists` (panels) of int64."""

    is_exact = True

    def __init__(
        self,
        rows: int,
        width: int,
        panels: Tensor | None = None,
        lists: NDArray[np.int64] | None = None,
        outliers: NDArray[np.void] | None = None,
    ) -> None:
        """Without panels all rows are still to be put, from the first on."""
        self.rows, self.width = rows, width
        self.panels = pages.empty(self.shape(rows, width), torch.uint8) if panels is None else panels
        self.lists = np.zeros(len(self.panels), dtype=np.int64) if lists is None else lists
        self._pieces = [] if outliers is None else [outliers]  # of the outliers, as rows are put
        self._listed = sum(map(len, self._pieces))

    @classmethod
    def of(cls, weight_ND: Tensor) -> "CompressedMatrix":
        """The same numbers as a matrix of bfloat16."""
        matrix = cls(*weight_ND.shape)
        matrix.put(0, weight_ND)
        return matrix

    @staticmethod
    def shape(rows: int, width: int) -> tuple[int, int]:
        """Of a matrix's panels."""
        return -(-rows // PANEL), LINE * (1 + 3 * -(-width // INPUTS))

    @property
    def outliers(self) -> NDArray[np.void]:
        """(N), all that have been put."""
        if len(self._pieces) != 1:
            self._pieces = [np.concatenate(self._pieces or [np.empty(0, dtype=OUTLIER)])]
        return self._pieces[0]

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes + self.lists.nbytes + self.outliers.nbytes

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Of panels, lists and outliers, as the kernels take them; good for as long as these live."""
        return self.panels.data_ptr(), self.lists.ctypes.data, self.outliers.ctypes.data

    @property
    def is_whole(self) -> bool:
        """Whether lists and outliers, which may come from a file, lead nowhere else."""
        out, blocks = self.outliers, -(-self.width // INPUTS)
        ends = out["block"] == END
        begins = np.concatenate(([0], np.flatnonzero(ends) + 1))
        inside = (
            (out["block"] >= 0) & (out["block"] < blocks) & (out["row"] < PANEL) & (out["input"] < INPUTS)
        )
        rising = (np.diff(out["block"]) >= 0) | ends[:-1]
        return bool(
            (ends | inside).all() and rising.all() and np.array_equal(begins, np.append(self.lists, len(out)))
        )

    def __len__(self) -> int:
        return self.rows

    def put(self, first: int, rows_ND: Tensor) -> None:
        """As `put_stored`, with rows in bfloat16. On one thread: what has just made them may leave PyTorch's
        spinning on the other processors."""
        rows = rows_ND.contiguous()
        self._put(first, rows.data_ptr(), np.arange(len(rows)), 1)

    def put_stored(self, first: int, address: int, order: NDArray[np.int64]) -> None:
        """Rows from `first` on, a multiple of 16, become the rows `order` of a matrix in bfloat16 at an
        address; all that there are, or a multiple of 16."""
        self._put(first, address, order, threads())

    def _put(self, first: int, address: int, order: NDArray[np.int64], on: int) -> None:
        found = native.compress(
            self.panels.data_ptr(), self.lists.ctypes.data, self.width, first // PANEL, len(order), address,
            order.ctypes.data, self._listed, on,
        )  # fmt: skip
        self._pieces.append(np.frombuffer(found, dtype=OUTLIER))
        self._listed += len(self._pieces[-1])

    def rows_of(self, ids: Sequence[int]) -> Tensor:
        """The rows with these numbers (N, width) in float32; IndexError where there is none such."""
        check_rows(ids, self.rows)
        return self._expand(np.array(ids, dtype=np.int64)).float()

    def dequantize(self, first: int = 0, last: int | None = None) -> Tensor:
        """Rows [first, last) as they were."""
        return self._expand(np.arange(first, self.rows if last is None else last))

    def _expand(self, order: NDArray[np.int64]) -> Tensor:
        out = torch.empty(len(order), self.width, dtype=torch.bfloat16)
        native.expand(*self.addresses, self.width, order.ctypes.data, len(order), out.data_ptr(), threads())
        return out
