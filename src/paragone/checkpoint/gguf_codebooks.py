"""The block formats of GGUF that store, for four or eight weights at once, the number of a codebook's entry.

codebooks.bin has the codebooks of ggml (ggml-common.h, MIT licence), entry by entry, a signed byte a weight.
They are sizes where a format stores signs beside them, and minus one to one in the types of about one bit.

Source: as gguf_blocks.py, whose results and shapes these have.
"""

from functools import cache
from itertools import accumulate, pairwise
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paragone.checkpoint.gguf_blocks import F32, U8, Groups, half

I8 = NDArray[np.int8]
SHAPES = {
    "IQ2_XXS": (256, 8), "IQ2_XS": (512, 8), "IQ2_S": (1024, 8),
    "IQ3_XXS": (256, 4), "IQ3_S": (512, 4), "IQ1": (2048, 8),
}  # fmt: skip


@cache
def codebook(name: str) -> I8:
    """(entries, weights of an entry)"""
    numbers = np.fromfile(Path(__file__).with_name("codebooks.bin"), dtype=np.int8)
    places = dict(zip(SHAPES, pairwise(accumulate(map(prod, SHAPES.values()), initial=0)), strict=True))
    first, last = places[name]
    return numbers[first:last].reshape(SHAPES[name])


def _words(raw: U8, dtype: str) -> NDArray[np.unsignedinteger]:
    return np.ascontiguousarray(raw).view(dtype)


def _bits(raw: NDArray[np.unsignedinteger], shifts: range, mask: int) -> NDArray[np.unsignedinteger]:
    """(n, k) to (n, k * shifts): each number moved right by each of the shifts."""
    moved = raw[:, :, None] >> np.arange(shifts.start, shifts.stop, shifts.step, dtype=raw.dtype)
    return (moved & raw.dtype.type(mask)).reshape(len(raw), -1)


def _signed(sizes: I8, signs: U8, group: int) -> I8:
    """Entries (n, k, weights) with a bit each, (n, bytes), which says whether it is negative."""
    negative = np.unpackbits(signs, axis=1, bitorder="little").astype(np.int8)
    return (sizes.reshape(len(sizes), -1) * (1 - 2 * negative)).reshape(len(sizes), -1, group)


def _with_parity(seven: NDArray[np.unsignedinteger]) -> U8:
    """Seven stored signs and the eighth, which makes the number of negative ones even."""
    parity = seven.copy()
    for shift in (4, 2, 1):
        parity ^= parity >> seven.dtype.type(shift)
    return (seven | (parity & 1) << seven.dtype.type(7)).astype(np.uint8)


def _scales(d: F32, codes: NDArray[np.unsignedinteger], step: float) -> F32:
    """Scales of half a step and so many more."""
    return d * (np.float32(0.5) + codes.astype(np.float32)) * np.float32(step)


def iq2_xxs(b: U8) -> Groups:
    """d, qs[8] of four entries and 32 bits: four times seven signs, and a scale"""
    words = _words(b[:, 2:], "<u4")
    entries = codebook("IQ2_XXS")[np.ascontiguousarray(words[:, 0::2]).view(np.uint8)]
    signs = _with_parity(_bits(words[:, 1::2], range(0, 28, 7), 127))
    scale = _scales(half(b[:, :2]), words[:, 1::2] >> np.uint32(28), 0.25)
    return Groups(_signed(entries, signs, 32), scale)


def iq2_xs(b: U8) -> Groups:
    """d, qs[32] of 9 bits and seven signs, scales[8]"""
    words = _words(b[:, 2:66], "<u2")
    entries = codebook("IQ2_XS")[words & np.uint16(511)]
    scale = _scales(half(b[:, :2]), _bits(b[:, 66:], range(0, 8, 4), 15), 0.25)
    return Groups(_signed(entries, _with_parity(words >> np.uint16(9)), 16), scale)


def iq2_s(b: U8) -> Groups:
    """d, qs[32], signs[32], qh[8], scales[8]"""
    high = _bits(b[:, 66:74], range(0, 8, 2), 3).astype(np.uint16)
    entries = codebook("IQ2_S")[b[:, 2:34] | high << np.uint16(8)]
    scale = _scales(half(b[:, :2]), _bits(b[:, 74:], range(0, 8, 4), 15), 0.25)
    return Groups(_signed(entries, b[:, 34:66], 16), scale)


def iq3_xxs(b: U8) -> Groups:
    """d, qs[64], eight times 32 bits: four times seven signs, and a scale"""
    words = _words(b[:, 66:], "<u4")
    signs = _with_parity(_bits(words, range(0, 28, 7), 127))
    scale = _scales(half(b[:, :2]), words >> np.uint32(28), 0.5)
    return Groups(_signed(codebook("IQ3_XXS")[b[:, 2:66]], signs, 32), scale)


def iq3_s(b: U8) -> Groups:
    """d, qs[64], qh[8], signs[32], scales[4]"""
    high = _bits(b[:, 66:74], range(8), 1).astype(np.uint16)
    entries = codebook("IQ3_S")[b[:, 2:66] | high << np.uint16(8)]
    scale = half(b[:, :2]) * (1 + 2 * _bits(b[:, 106:], range(0, 8, 4), 15)).astype(np.float32)
    return Groups(_signed(entries, b[:, 74:106], 32), scale)


def iq1_s(b: U8) -> Groups:
    """d, qs[32], qh[8] of 16 bits: three numbers, moved by an eighth of their step up or down."""
    words = _words(b[:, 34:], "<u2")
    entries = codebook("IQ1")[b[:, 2:34] | _bits(words, range(0, 12, 3), 7) << np.uint16(8)]
    scale = half(b[:, :2]) * (2 * (words >> 12 & 7) + 1).astype(np.float32)
    eighths = np.where(words & 0x8000, -9, -7).astype(np.float32)
    q = (entries + np.int8(1)).astype(np.uint8).reshape(-1, 8, 32)
    return Groups(q, scale, scale * (eighths / np.float32(8)))


def iq1_m(b: U8) -> Groups:
    """qs[32], qh[16], scales[8]: as iq1_s, in whole eighths, for every eight weights have a direction."""
    words = _words(b[:, 48:], "<u2")  # three bits for each of four scales, and four of the block's
    d = np.bitwise_or.reduce((words & 0xF000) >> np.array([12, 8, 4, 0], dtype=np.uint16), axis=1)
    steps = (2 * _bits(words, range(0, 12, 3), 7) + 1).astype(np.float32)
    fours = _bits(b[:, 32:48], range(0, 8, 4), 15).astype(np.uint16)
    entries = codebook("IQ1")[b[:, :32] | (fours & 7) << np.uint16(8)]
    direction = np.where(fours & 8, np.int8(-1), np.int8(1))
    q = 8 * entries + direction[:, :, None]
    return Groups(q.reshape(-1, 16, 16), half(d.view(np.uint8).reshape(-1, 2)) * steps / np.float32(8))
