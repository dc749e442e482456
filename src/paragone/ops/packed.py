"""Weights in four, five, six or eight bits as the kernels lay them out, and what they mean.

Sixteen rows are a panel, a panel is a run of blocks of 64 inputs: codes, then scales, then, where there are
any, minima: weight = scale * (code - center) + minimum. In eight bits the sixteen rows' codes of four
neighbouring inputs lie together. In four bits, for each half of a block, low halves of bytes hold its first
16 inputs so, and high halves the other 16. The upper bits of five and six follow in lines of four bytes for
each row, which have them for 32 or 16 inputs, those of the first four lowest in each byte. Where there are
`levels`, codes of four bits are numbers of sixteen integers, which take the place of code - center. Scales
and minima are float16 in units of `unit`, one for every 32 inputs, or for every 16 where `fine`. Rows
are padded with scales of zero, and inputs with codes that meet inputs of zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from paragone.kernels import native
from paragone.ops import pages
from paragone.ops.threads import threads

PANEL, BLOCK = 16, 64
# Bits, minima, whether fine and whether codes are numbers of levels: those that a format needs.
LAYOUTS = (
    (4, False, False, False), (4, False, True, False), (4, True, False, False), (4, True, True, False),
    (4, False, False, True), (4, False, True, True),
    (5, False, False, False), (5, True, False, False),
    (6, False, True, False),
    (8, False, False, False), (8, True, False, False),
)  # fmt: skip


@dataclass(frozen=True)
class Packing:
    """Which of the layouts: 4, 5, 6 or 8 bits; with minima or symmetric; scales for 16 inputs or for 32; and
    the sixteen levels from -128 to 127, if codes are numbers of those. One that is not among LAYOUTS is a
    ValueError."""

    bits: int
    has_minimum: bool = False
    fine: bool = False
    unit: float = 1.0
    levels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if (self.bits, self.has_minimum, self.fine, self.levels is not None) not in LAYOUTS:
            raise ValueError(f"there is no layout for {self}")
        if self.levels is not None and (len(self.levels) != 16 or not _are_bytes(self.levels)):
            raise ValueError(f"no sixteen levels: {self.levels}")

    @property
    def is_stored(self) -> bool:
        """Whether integers and scales are a file's own, and not made here."""
        return self.unit == 1.0

    @property
    def group(self) -> int:
        return 16 if self.fine else 32

    @property
    def center(self) -> int:
        """The code that means zero, before the minimum."""
        return 0 if self.has_minimum and self.bits < 8 else 1 << (self.bits - 1)

    @property
    def upper(self) -> int:
        """Bits of a code beyond the four that lie together."""
        return self.bits - 4 if self.bits < 8 else 0

    @property
    def block_bytes(self) -> int:
        scales = BLOCK // self.group * (2 if self.has_minimum else 1)
        return PANEL * (BLOCK * self.bits // 8 + 2 * scales)

    def shape(self, rows: int, width: int) -> tuple[int, int, int]:
        """Of a matrix's panels: (panels, blocks, bytes of a block)."""
        return -(-rows // PANEL), -(-width // BLOCK), self.block_bytes

    @cached_property
    def native(self) -> Any:
        """Itself, for the kernels."""
        levels = list(self.levels or ())
        return native.layout(self.bits, self.has_minimum, self.fine, self.unit, levels)

    def codes(self, integers: NDArray[np.generic]) -> NDArray[np.uint8]:
        """What is stored for these, which are levels, or counted from the center."""
        if self.levels is None:
            return (integers.astype(np.int16) + self.center).astype(np.uint8)
        numbers = np.zeros(256, dtype=np.uint8)
        numbers[np.array(self.levels) + 128] = np.arange(16)
        return numbers[integers.astype(np.int16) + 128]

    def integers(self, codes: Tensor) -> Tensor:
        """What stored codes stand for, in float32."""
        if self.levels is None:
            return codes.float() - self.center
        return torch.tensor(self.levels, dtype=torch.float32, device=codes.device)[codes.long()]

    def rounded(self, scales: Tensor) -> Tensor:
        """Scales or minima as they come back from float16, in float32."""
        return (scales / self.unit).clamp(-65504, 65504).half().float() * self.unit


def _are_bytes(levels: Sequence[int]) -> bool:
    return all(type(level) is int and -128 <= level <= 127 for level in levels)


def empty_panels(rows: int, shape: tuple[int, ...]) -> Tensor:
    """Panels whose rows are still to be put, of uint8; zeros in lanes of rows that there are not."""
    panels = pages.empty(shape, torch.uint8)
    if rows % PANEL:
        panels[-1:].zero_()
    return panels


def as_stored(rows_ND: Tensor) -> tuple[Tensor, str]:
    """Floats as the kernels quantise them where they lie, and the name of their type in files."""
    kept = rows_ND.dtype == torch.bfloat16
    return (rows_ND if kept else rows_ND.float()).contiguous(), "BF16" if kept else "F32"


def check_rows(ids: Sequence[int], rows: int) -> None:
    """IndexError where a matrix has no row with one of these numbers."""
    if min(ids) < 0 or max(ids) >= rows:
        raise IndexError(f"rows {min(ids)} to {max(ids)} of {rows}")


class PackedMatrix:
    """(rows, width) in one of the layouts. `panels` is (panels, blocks, bytes of a block) of uint8; where
    there is an `order` (width) of int32, input i of the panels is input order[i] of the matrix."""

    def __init__(
        self,
        rows: int,
        width: int,
        packing: Packing,
        panels: Tensor | None = None,
        order: Tensor | None = None,
    ) -> None:
        """Without panels all rows are still to be put."""
        self.rows, self.width, self.packing, self.order = rows, width, packing, order
        self.panels = empty_panels(rows, packing.shape(rows, width)) if panels is None else panels
        self._address = self.panels.data_ptr() if self.in_reach else 0

    @property
    def in_reach(self) -> bool:
        """Whether the kernels can work on it where it is."""
        return native is not None and self.panels.device.type == "cpu"

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes

    @property
    def is_exact(self) -> bool:
        """Whether it loses nothing of what the file has."""
        return self.packing.is_stored

    def to(self, device: torch.device) -> "PackedMatrix":
        """Itself, moved."""
        self.panels = self.panels.to(device)
        self._address = self.panels.data_ptr() if self.in_reach else 0
        self.order = None if self.order is None else self.order.to(device)
        return self

    def __len__(self) -> int:
        return self.rows

    def put(self, first: int, codes_ND: Tensor, scale_NG: Tensor, minimum_NG: Tensor | None) -> None:
        """Rows from `first` on: codes uint8, and float32 scales and minima of each group."""
        if not self.in_reach:
            self._put(first, codes_ND, scale_NG, minimum_NG)
            return
        codes, scale = codes_ND.contiguous(), scale_NG.float().contiguous()
        minimum = None if minimum_NG is None else minimum_NG.float().contiguous()
        native.pack(
            self.packing.native, self.panels.data_ptr(), self.width, first, len(codes), codes.data_ptr(),
            scale.data_ptr(), 0 if minimum is None else minimum.data_ptr(), threads(),
        )  # fmt: skip

    def repack(
        self,
        first: int,
        kind: str,
        raw: int,
        order: NDArray[np.int64],
        codebook: NDArray[np.int8] | None = None,
    ) -> bool:
        """Rows from `first` on become the rows `order` of a tensor of one of GGUF's types, which begins at an
        address; False where the kernels do not know the type."""
        if not self.in_reach or not native.repacks(kind):
            return False
        book = 0 if codebook is None else codebook.ctypes.data
        native.repack(
            self.packing.native, self.panels.data_ptr(), self.width, first, len(order), kind, book, raw,
            order.ctypes.data, threads(),
        )  # fmt: skip
        return True

    def _put(self, first: int, codes_ND: Tensor, scale_NG: Tensor, minimum_NG: Tensor | None) -> None:
        """The same without kernels."""
        p, blocks = self.packing, self.panels.shape[1]
        n = torch.arange(first, first + len(codes_ND), device=self.panels.device)
        panel, lane = n // PANEL, n % PANEL
        whole = F.pad(codes_ND.to(self.panels.device), (0, blocks * BLOCK - self.width))
        codes = self._codes()
        if p.bits == 8:
            codes[panel, :, :, lane] = whole.view(-1, blocks, BLOCK // 4, 4)
        else:
            halves = (whole & 15).view(-1, blocks, 2, 2, 4, 4)
            codes[panel, :, :, lane] = (halves[:, :, :, 0] | halves[:, :, :, 1] << 4).flatten(2, 3)
        if p.upper:
            above = (whole >> 4).view(-1, blocks, 2 * p.upper, 8 // p.upper, 4)
            placed = above << self._places().view(-1, 1)  # none of whose bits meet
            self._upper()[panel, :, :, lane] = placed.sum(3, dtype=torch.uint8)
        groups = blocks * BLOCK // p.group
        for at, values in enumerate((scale_NG, minimum_NG)):
            if values is not None:
                stored = (values.to(self.panels.device) / p.unit).clamp(-65504, 65504).half()
                padded = F.pad(stored, (0, groups - stored.shape[1]))
                self._scales(at)[panel, :, :, lane] = padded.view(len(stored), blocks, -1)

    def rows_of(self, ids: Sequence[int]) -> Tensor:
        """The rows with these numbers (N, width) in float32; IndexError where there is none such."""
        out = torch.empty(len(ids), self.width)
        if self.put_rows_of(ids, out.data_ptr()):
            return out
        return torch.cat([self.dequantize(i, i + 1) for i in ids])

    def put_rows_of(self, ids: Sequence[int], address: int) -> bool:
        """The same into memory that begins at an address; False where the kernels do not do it."""
        check_rows(ids, self.rows)
        if not self._address or self.order is not None:
            return False
        native.unpack(self.packing.native, self._address, self.width, ids, address)
        return True

    def _codes(self) -> Tensor:
        """A view (panels, blocks, runs, lanes, 4), but for the upper bits."""
        end = PANEL * BLOCK * (self.packing.bits - self.packing.upper) // 8
        return self.panels[:, :, :end].view(*self.panels.shape[:2], -1, PANEL, 4)

    def _upper(self) -> Tensor:
        """A view (panels, blocks, lines, lanes, 4)."""
        begin, size = PANEL * BLOCK // 2, PANEL * BLOCK * self.packing.upper // 8
        return self.panels[:, :, begin : begin + size].view(*self.panels.shape[:2], -1, PANEL, 4)

    def _places(self) -> Tensor:
        """Where in a line's bytes the upper bits of each four inputs begin."""
        return torch.arange(0, 8, self.packing.upper, device=self.panels.device, dtype=torch.uint8)

    def _scales(self, which: int) -> Tensor:
        """A view (panels, blocks, groups, lanes) of scales (0) or minima (1)."""
        begin, size = PANEL * BLOCK * self.packing.bits // 8, PANEL * 2 * (BLOCK // self.packing.group)
        part = self.panels[:, :, begin + which * size : begin + (which + 1) * size]
        return part.view(torch.float16).view(*part.shape[:2], -1, PANEL)

    def dequantize(self, first: int = 0, last: int | None = None) -> Tensor:
        """Rows [first, last) in float32. Defines what the bytes mean."""
        p, last = self.packing, self.rows if last is None else last
        panels = slice(first // PANEL, -(-last // PANEL))
        stored = self._codes()[panels]
        if p.bits < 8:  # runs of a half: four low ones, then four high ones
            halves = stored.view(*stored.shape[:2], 2, 4, PANEL, 4)
            stored = torch.stack((halves & 15, halves >> 4), dim=3).flatten(2, 4)
        if p.upper:
            above = self._upper()[panels].unsqueeze(3) >> self._places().view(-1, 1, 1)
            stored = stored | (above & ((1 << p.upper) - 1)).flatten(2, 3) << 4
        codes = p.integers(stored.permute(0, 3, 1, 2, 4))  # (panels, lanes, blocks, runs, 4)
        groups = codes.reshape(*codes.shape[:3], -1, p.group)
        scale = self._scales(0)[panels].permute(0, 3, 1, 2).float() * p.unit
        out = groups * scale[..., None]
        if p.has_minimum:
            out += (self._scales(1)[panels].permute(0, 3, 1, 2).float() * p.unit)[..., None]
        begin = first - panels.start * PANEL
        out = out.flatten(0, 1).flatten(1)[begin : begin + last - first, : self.width]
        return out if self.order is None else out[:, self.order.argsort()]
