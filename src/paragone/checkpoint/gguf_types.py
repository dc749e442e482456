"""The table of GGUF's tensor types: their names, codes and sizes, and what takes their blocks apart."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paragone.checkpoint import gguf_blocks as blocks
from paragone.checkpoint import gguf_codebooks as codebooks
from paragone.checkpoint.gguf_blocks import F32, SUPER, U8, Groups


@dataclass(frozen=True)
class BlockType:
    """One of GGUF's tensor types: `type_size` bytes hold `block_size` weights."""

    name: str
    code: int
    block_size: int
    type_size: int
    unpack: Callable[[U8], Groups] | None = None  # None for dense types
    code_bits: int = 8  # that the integers need with what stands for zero, or their numbers where there are
    levels: tuple[int, ...] | None = None  # sixteen, of which all integers are
    book: str | None = None  # whose entries' numbers it stores

    @property
    def is_quantized(self) -> bool:
        return self.unpack is not None

    @property
    def codebook(self) -> NDArray[np.int8] | None:
        """(entries, weights of an entry), for types that have one."""
        return None if self.book is None else codebooks.codebook(self.book)

    def dequantize(self, raw: U8) -> F32:
        """Bytes of whole blocks, (..., k * type_size), to float32 (..., k * block_size)."""
        if self.unpack is None:
            raise TypeError(f"{self.name} is dense and has nothing to dequantise")
        groups = self.unpack(raw.reshape(-1, self.type_size))
        out = groups.scale[..., None] * groups.q.astype(np.float32)
        if groups.minimum is not None:
            out += groups.minimum[..., None]
        return out.reshape(*raw.shape[:-1], -1)


def _signed(*sizes: int) -> tuple[int, ...]:
    """Both signs of each, and as many of the last as are missing."""
    levels = *(-size for size in reversed(sizes)), *sizes
    return levels + levels[-1:] * (16 - len(levels))


IQ4, MX = (tuple(map(int, levels)) for levels in (blocks.IQ4_LEVELS, blocks.MX_LEVELS))
IQ2, IQ3 = _signed(8, 25, 43), _signed(4, 12, 20, 28, 36, 44, 52, 62)

TYPES: tuple[BlockType, ...] = (
    BlockType("F32", 0, 1, 4),
    BlockType("F16", 1, 1, 2),
    BlockType("BF16", 30, 1, 2),
    BlockType("Q4_0", 2, 32, 18, blocks.q4_0, 4),
    BlockType("Q4_1", 3, 32, 20, blocks.q4_1, 4),
    BlockType("Q5_0", 6, 32, 22, blocks.q5_0, 5),
    BlockType("Q5_1", 7, 32, 24, blocks.q5_1, 5),
    BlockType("Q8_0", 8, 32, 34, blocks.q8_0),
    BlockType("Q2_K", 10, SUPER, 84, blocks.q2_k, 4),
    BlockType("Q3_K", 11, SUPER, 110, blocks.q3_k, 4),
    BlockType("Q4_K", 12, SUPER, 144, blocks.q4_k, 4),
    BlockType("Q5_K", 13, SUPER, 176, blocks.q5_k, 5),
    BlockType("Q6_K", 14, SUPER, 210, blocks.q6_k, 6),
    BlockType("IQ4_NL", 20, 32, 18, blocks.iq4_nl, 4, IQ4),
    BlockType("IQ4_XS", 23, SUPER, 136, blocks.iq4_xs, 4, IQ4),
    BlockType("IQ3_S", 21, SUPER, 110, codebooks.iq3_s, 4, _signed(1, 3, 5, 7, 9, 11, 13, 15), "IQ3_S"),
    BlockType("IQ3_XXS", 18, SUPER, 98, codebooks.iq3_xxs, 4, IQ3, "IQ3_XXS"),
    BlockType("IQ2_S", 22, SUPER, 82, codebooks.iq2_s, 4, IQ2, "IQ2_S"),
    BlockType("IQ2_XS", 17, SUPER, 74, codebooks.iq2_xs, 4, IQ2, "IQ2_XS"),
    BlockType("IQ2_XXS", 16, SUPER, 66, codebooks.iq2_xxs, 4, IQ2, "IQ2_XXS"),
    BlockType("IQ1_M", 29, SUPER, 56, codebooks.iq1_m, 4, _signed(1, 7, 9), "IQ1"),
    BlockType("IQ1_S", 19, SUPER, 50, codebooks.iq1_s, 4, book="IQ1"),
    BlockType("TQ1_0", 34, SUPER, 54, blocks.tq1_0, 4),
    BlockType("TQ2_0", 35, SUPER, 66, blocks.tq2_0, 4),
    BlockType("MXFP4", 39, 32, 17, blocks.mxfp4, 4, MX),
    BlockType("NVFP4", 40, 64, 36, blocks.nvfp4, 4, MX),
)
BY_CODE = {t.code: t for t in TYPES}

# Known to GGUF but not read here; named so that the refusal can say which it is. Q8_1 and Q8_K are of
# activations and in no file, the others of no weights.
UNSUPPORTED = {9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64"}
