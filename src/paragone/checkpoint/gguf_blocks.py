"""The block formats of GGUF: how stored bytes become integers, scales and minima.

A GGUF tensor row is a run of fixed-size blocks; a block holds `block_size` weights cut into groups, and
every group means ``weight = scale * q + minimum``. `unpack` gives the three parts without losing a
stored bit, so that later stages may keep the integers; `dequantize` multiplies them out in float32.

Source: the reference decoders in ggml (ggml-quants.c) and the `gguf` package, to which the results are
bit-equal. Shapes below: n blocks, G groups a block, g weights a group.
"""

from collections.abc import Callable
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


@dataclass(frozen=True)
class Groups:
    """Blocks taken apart: ``weight = scale[..., None] * q + minimum[..., None]``.

    q: (n, G, g) uint8 or int8 · scale: (n, G) float32 · minimum: (n, G) float32, or None for zero.
    """

    q: NDArray[np.generic]
    scale: F32
    minimum: F32 | None = None


def _half(raw: U8) -> F32:
    """(n, 2k) bytes to (n, k) float32, read as little-endian float16."""
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def _nibbles(raw: U8, group: int) -> U8:
    """(n, b) bytes to (n, 2b / group, group): each run of `group` bytes gives low halves, then high."""
    n = raw.shape[0]
    runs = raw.reshape(n, -1, 1, group)
    return (runs >> np.array([[0], [4]], dtype=np.uint8) & np.uint8(15)).reshape(n, -1, group)


def _fields(raw: U8, width: int, run: int) -> U8:
    """(n, b) bytes to (n, b * 8 / width) fields of `width` bits, lowest first within runs of bytes."""
    n = raw.shape[0]
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    return (raw.reshape(n, -1, 1, run) >> shifts & np.uint8((1 << width) - 1)).reshape(n, -1)


def _fifth_bits(raw: U8) -> U8:
    """(n, 4) bytes to (n, 1, 32): bit i of the little-endian word, as 0 or 16."""
    return (np.unpackbits(raw, axis=1, bitorder="little") << np.uint8(4))[:, None, :]


def _unpack_q4_0(b: U8) -> Groups:
    return Groups(_nibbles(b[:, 2:], 16).reshape(-1, 1, 32).astype(np.int8) - 8, _half(b[:, :2]))


def _unpack_q4_1(b: U8) -> Groups:
    return Groups(_nibbles(b[:, 4:], 16).reshape(-1, 1, 32), _half(b[:, :2]), _half(b[:, 2:4]))


def _unpack_q5_0(b: U8) -> Groups:
    q = _nibbles(b[:, 6:], 16).reshape(-1, 1, 32) | _fifth_bits(b[:, 2:6])
    return Groups(q.astype(np.int8) - 16, _half(b[:, :2]))


def _unpack_q5_1(b: U8) -> Groups:
    q = _nibbles(b[:, 8:], 16).reshape(-1, 1, 32) | _fifth_bits(b[:, 4:8])
    return Groups(q, _half(b[:, :2]), _half(b[:, 2:4]))


def _unpack_q8_0(b: U8) -> Groups:
    return Groups(b[:, 2:].view(np.int8).reshape(-1, 1, 32), _half(b[:, :2]))


def _unpack_q2_k(b: U8) -> Groups:
    codes, quants, d, dmin = b[:, :16], b[:, 16:80], _half(b[:, 80:82]), _half(b[:, 82:84])
    q = _fields(quants, 2, 32).reshape(-1, 16, 16)
    return Groups(q, d * (codes & 15).astype(np.float32), -(dmin * (codes >> 4).astype(np.float32)))


def _unpack_q3_k(b: U8) -> Groups:
    high, quants, packed, d = b[:, :32], b[:, 32:96], b[:, 96:108], _half(b[:, 108:110])
    low4 = _nibbles(packed[:, :8], 8).reshape(-1, 16)
    codes = low4 | _fields(packed[:, 8:], 2, 4) << 4
    scale = d * (codes.astype(np.int8) - 32).astype(np.float32)
    low = _fields(quants, 2, 32).astype(np.int8)
    q = low - ((_fields(high, 1, 32) ^ 1) << 2).astype(np.int8)  # a clear high bit means minus four
    return Groups(q.reshape(-1, 16, 16), scale)


def _scale_min_k4(packed: U8) -> tuple[F32, F32]:
    """(n, 12) bytes to eight 6-bit scales and eight 6-bit minima, as Q4_K and Q5_K pack them."""
    d, m, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scale = np.concatenate([d & 63, (high & 15) | (d >> 2 & 48)], axis=1)
    minimum = np.concatenate([m & 63, (high >> 4) | (m >> 2 & 48)], axis=1)
    return scale.astype(np.float32), minimum.astype(np.float32)


def _unpack_q4_k(b: U8) -> Groups:
    scale, minimum = _scale_min_k4(b[:, 4:16])
    return Groups(_nibbles(b[:, 16:], 32), _half(b[:, :2]) * scale, -(_half(b[:, 2:4]) * minimum))


def _unpack_q5_k(b: U8) -> Groups:
    scale, minimum = _scale_min_k4(b[:, 4:16])
    q = _nibbles(b[:, 48:], 32) | _fields(b[:, 16:48], 1, 32).reshape(-1, 8, 32) << 4
    return Groups(q, _half(b[:, :2]) * scale, -(_half(b[:, 2:4]) * minimum))


def _unpack_q6_k(b: U8) -> Groups:
    low = _nibbles(b[:, :128], 64).reshape(-1, 256)
    q = (low | _fields(b[:, 128:192], 2, 32) << 4).astype(np.int8) - 32
    scale = _half(b[:, 208:210]) * b[:, 192:208].view(np.int8).astype(np.float32)
    return Groups(q.reshape(-1, 16, 16), scale)


def _unpack_iq4_nl(b: U8) -> Groups:
    return Groups(IQ4_LEVELS[_nibbles(b[:, 2:], 16)].reshape(-1, 1, 32), _half(b[:, :2]))


def _unpack_iq4_xs(b: U8) -> Groups:
    high = np.ascontiguousarray(b[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    low = (b[:, 4:8, None] >> np.array([0, 4], dtype=np.uint8) & 15).reshape(-1, 8)
    codes = (low | high.astype(np.uint8) << 4).astype(np.int8) - 32
    q = IQ4_LEVELS[_nibbles(b[:, 8:], 16)].reshape(-1, 8, 32)
    return Groups(q, _half(b[:, :2]) * codes.astype(np.float32))


@dataclass(frozen=True)
class BlockType:
    """One of GGUF's tensor types: `type_size` bytes hold `block_size` weights."""

    name: str
    code: int
    block_size: int
    type_size: int
    unpack: Callable[[U8], Groups] | None = None  # None for dense types
    code_bits: int = 8  # that the integers need, and what stands for zero

    @property
    def is_quantized(self) -> bool:
        return self.unpack is not None

    def dequantize(self, raw: U8) -> F32:
        """Bytes of whole blocks, (..., k * type_size), to float32 (..., k * block_size)."""
        if self.unpack is None:
            raise TypeError(f"{self.name} is dense and has nothing to dequantise")
        groups = self.unpack(raw.reshape(-1, self.type_size))
        out = groups.scale[..., None] * groups.q.astype(np.float32)
        if groups.minimum is not None:
            out += groups.minimum[..., None]
        return out.reshape(*raw.shape[:-1], -1)


TYPES: tuple[BlockType, ...] = (
    BlockType("F32", 0, 1, 4),
    BlockType("F16", 1, 1, 2),
    BlockType("BF16", 30, 1, 2),
    BlockType("Q4_0", 2, 32, 18, _unpack_q4_0, code_bits=4),
    BlockType("Q4_1", 3, 32, 20, _unpack_q4_1, code_bits=4),
    BlockType("Q5_0", 6, 32, 22, _unpack_q5_0),
    BlockType("Q5_1", 7, 32, 24, _unpack_q5_1),
    BlockType("Q8_0", 8, 32, 34, _unpack_q8_0),
    BlockType("Q2_K", 10, SUPER, 84, _unpack_q2_k, code_bits=4),
    BlockType("Q3_K", 11, SUPER, 110, _unpack_q3_k, code_bits=4),
    BlockType("Q4_K", 12, SUPER, 144, _unpack_q4_k, code_bits=4),
    BlockType("Q5_K", 13, SUPER, 176, _unpack_q5_k),
    BlockType("Q6_K", 14, SUPER, 210, _unpack_q6_k),
    BlockType("IQ4_NL", 20, 32, 18, _unpack_iq4_nl),
    BlockType("IQ4_XS", 23, SUPER, 136, _unpack_iq4_xs),
)
BY_CODE = {t.code: t for t in TYPES}

# Known to GGUF but not read here; named so that the refusal can say which it is.
UNSUPPORTED = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S",
    22: "IQ2_S", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
