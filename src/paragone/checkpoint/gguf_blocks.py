"""The block formats of GGUF: how stored bytes become integers, scales and minima.

A GGUF tensor row is a run of fixed-size blocks; a block holds `block_size` weights cut into groups, and
every group means ``weight = scale * q + minimum``. The functions below give the three parts without losing a
stored bit, so that later stages may keep the integers. gguf_codebooks.py has the types that store numbers of
entries of a codebook, gguf_types.py the table of all.

Source: the reference decoders in ggml (ggml-quants.c) and the `gguf` package, to which the products are
bit-equal. Shapes below: n blocks, G groups a block, g weights a group. What a block consists of is said in
ggml's names: d, m and dmin are float16, the others bytes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

SUPER = 256  # weights in a block of the K formats
# Non-linear 4-bit levels shared by IQ4_NL and IQ4_XS.
IQ4_LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.int8
)

# Floating-point numbers of four bits, one of them the sign, doubled (E2M1 of OCP's microscaling formats).
MX_LEVELS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.int8)


@dataclass(frozen=True)
class Groups:
    """Blocks taken apart: ``weight = scale[..., None] * q + minimum[..., None]``.

    q: (n, G, g) uint8 or int8 · scale: (n, G) float32 · minimum: (n, G) float32, or None for zero.
    """

    q: NDArray[np.generic]
    scale: F32
    minimum: F32 | None = None


def half(raw: U8) -> F32:
    """(n, 2k) bytes to (n, k) float32, read as little-endian float16."""
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def nibbles(raw: U8, group: int) -> U8:
    """(n, b) bytes to (n, 2b / group, group): each run of `group` bytes gives low halves, then high."""
    n = raw.shape[0]
    runs = raw.reshape(n, -1, 1, group)
    return (runs >> np.array([[0], [4]], dtype=np.uint8) & np.uint8(15)).reshape(n, -1, group)


def fields(raw: U8, width: int, run: int) -> U8:
    """(n, b) bytes to (n, b * 8 / width) fields of `width` bits, lowest first within runs of bytes."""
    n = raw.shape[0]
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    return (raw.reshape(n, -1, 1, run) >> shifts & np.uint8((1 << width) - 1)).reshape(n, -1)


def _fifth_bits(raw: U8) -> U8:
    """(n, 4) bytes to (n, 1, 32): bit i of the little-endian word, as 0 or 16."""
    return (np.unpackbits(raw, axis=1, bitorder="little") << np.uint8(4))[:, None, :]


def q4_0(b: U8) -> Groups:
    """d, qs[16]"""
    return Groups(nibbles(b[:, 2:], 16).reshape(-1, 1, 32).astype(np.int8) - 8, half(b[:, :2]))


def q4_1(b: U8) -> Groups:
    """d, m, qs[16]"""
    return Groups(nibbles(b[:, 4:], 16).reshape(-1, 1, 32), half(b[:, :2]), half(b[:, 2:4]))


def q5_0(b: U8) -> Groups:
    """d, qh[4], qs[16]"""
    q = nibbles(b[:, 6:], 16).reshape(-1, 1, 32) | _fifth_bits(b[:, 2:6])
    return Groups(q.astype(np.int8) - 16, half(b[:, :2]))


def q5_1(b: U8) -> Groups:
    """d, m, qh[4], qs[16]"""
    q = nibbles(b[:, 8:], 16).reshape(-1, 1, 32) | _fifth_bits(b[:, 4:8])
    return Groups(q, half(b[:, :2]), half(b[:, 2:4]))


def q8_0(b: U8) -> Groups:
    """d, qs[32]"""
    return Groups(b[:, 2:].view(np.int8).reshape(-1, 1, 32), half(b[:, :2]))


def q2_k(b: U8) -> Groups:
    """scales[16], qs[64], d, dmin"""
    codes, quants, d, dmin = b[:, :16], b[:, 16:80], half(b[:, 80:82]), half(b[:, 82:84])
    q = fields(quants, 2, 32).reshape(-1, 16, 16)
    return Groups(q, d * (codes & 15).astype(np.float32), -(dmin * (codes >> 4).astype(np.float32)))


def q3_k(b: U8) -> Groups:
    """hmask[32], qs[64], scales[12], d"""
    high, quants, packed, d = b[:, :32], b[:, 32:96], b[:, 96:108], half(b[:, 108:110])
    low4 = nibbles(packed[:, :8], 8).reshape(-1, 16)
    codes = low4 | fields(packed[:, 8:], 2, 4) << 4
    scale = d * (codes.astype(np.int8) - 32).astype(np.float32)
    low = fields(quants, 2, 32).astype(np.int8)
    q = low - ((fields(high, 1, 32) ^ 1) << 2).astype(np.int8)  # a clear high bit means minus four
    return Groups(q.reshape(-1, 16, 16), scale)


def _scale_min_k4(packed: U8) -> tuple[F32, F32]:
    """(n, 12) bytes to eight 6-bit scales and eight 6-bit minima, as Q4_K and Q5_K pack them."""
    d, m, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scale = np.concatenate([d & 63, (high & 15) | (d >> 2 & 48)], axis=1)
    minimum = np.concatenate([m & 63, (high >> 4) | (m >> 2 & 48)], axis=1)
    return scale.astype(np.float32), minimum.astype(np.float32)


def q4_k(b: U8) -> Groups:
    """d, dmin, scales[12], qs[128]"""
    scale, minimum = _scale_min_k4(b[:, 4:16])
    return Groups(nibbles(b[:, 16:], 32), half(b[:, :2]) * scale, -(half(b[:, 2:4]) * minimum))


def q5_k(b: U8) -> Groups:
    """d, dmin, scales[12], qh[32], qs[128]"""
    scale, minimum = _scale_min_k4(b[:, 4:16])
    q = nibbles(b[:, 48:], 32) | fields(b[:, 16:48], 1, 32).reshape(-1, 8, 32) << 4
    return Groups(q, half(b[:, :2]) * scale, -(half(b[:, 2:4]) * minimum))


def q6_k(b: U8) -> Groups:
    """ql[128], qh[64], scales[16], d"""
    low = nibbles(b[:, :128], 64).reshape(-1, 256)
    q = (low | fields(b[:, 128:192], 2, 32) << 4).astype(np.int8) - 32
    scale = half(b[:, 208:210]) * b[:, 192:208].view(np.int8).astype(np.float32)
    return Groups(q.reshape(-1, 16, 16), scale)


def iq4_nl(b: U8) -> Groups:
    """d, qs[16]"""
    return Groups(IQ4_LEVELS[nibbles(b[:, 2:], 16)].reshape(-1, 1, 32), half(b[:, :2]))


def iq4_xs(b: U8) -> Groups:
    """d, scales_h (16 bits), scales_l[4], qs[128]"""
    high = np.ascontiguousarray(b[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    low = (b[:, 4:8, None] >> np.array([0, 4], dtype=np.uint8) & 15).reshape(-1, 8)
    codes = (low | high.astype(np.uint8) << 4).astype(np.int8) - 32
    q = IQ4_LEVELS[nibbles(b[:, 8:], 16)].reshape(-1, 8, 32)
    return Groups(q, half(b[:, :2]) * codes.astype(np.float32))


def mxfp4(b: U8) -> Groups:
    """e, qs[16]; e is a power of two, which packed weights keep from 2^-24 to 2^15."""
    exponent = b[:, :1].astype(np.int32) - 128  # of two; the levels are doubled
    return Groups(MX_LEVELS[nibbles(b[:, 1:], 16)].reshape(-1, 1, 32), np.ldexp(np.float32(1), exponent))


def nvfp4(b: U8) -> Groups:
    """scales[4], qs[32]; scales are floating-point numbers of eight bits without a sign (E4M3), of which the
    one that is not a number counts as zero."""
    code = b[:, :4].astype(np.int32)
    exponent, mantissa = code >> 3 & 15, (code & 7).astype(np.float32)
    fraction = np.where(exponent > 0, 8 + mantissa, mantissa)
    scale = np.ldexp(fraction, np.maximum(exponent, 1) - 11)  # half of what is stored: the levels are doubled
    q = MX_LEVELS[nibbles(b[:, 4:], 8)].reshape(-1, 4, 16)
    return Groups(q, np.where(code == 127, np.float32(0), scale))


def _ternary(digits: U8, d: F32) -> Groups:
    """256 digits of 0 to 2 for minus one to one, with one scale in all."""
    return Groups(digits.astype(np.int8).reshape(-1, 8, 32) - np.int8(1), d.repeat(8, axis=1))


def tq1_0(b: U8) -> Groups:
    """qs[48], qh[4], d: five digits a byte, a fraction of 256 that powers of three bring to the front."""
    runs = []
    for first, last, run, count in ((0, 32, 32, 5), (32, 48, 16, 5), (48, 52, 4, 4)):
        powers = np.array([1, 3, 9, 27, 81], dtype=np.uint8)[:count, None]
        runs.append((b[:, first:last].reshape(-1, 1, run) * powers).reshape(len(b), -1))
    digits = np.concatenate(runs, axis=1).astype(np.uint16) * 3 >> 8
    return _ternary(digits.astype(np.uint8), half(b[:, 52:54]))


def tq2_0(b: U8) -> Groups:
    """qs[64], d"""
    return _ternary(fields(b[:, :64], 2, 32), half(b[:, 64:66]))
