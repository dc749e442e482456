"""Keys and values in blocks, and a step of many sequences over them.

N tokens of a step, of all its sequences together; K key/value heads, E head width, J = H + 2K.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paragone.model.attention import make_view
from paragone.model.position import alibi_bias, alibi_slopes
from paragone.model.spec import ModelSpec
from paragone.ops.attention import attention
from paragone.ops.paged import paged_attention, read_slots, write_slots


class PagedCache:
    """For each layer (blocks, 2K, block_size, E), the keys' heads first. Layers of one reach share their
    block numbers: `reaches` names them in the order of the tables, `pool_of` says which a layer has."""

    def __init__(
        self,
        spec: ModelSpec,
        num_blocks: Sequence[int],
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.spec, self.block_size, self.dtype, self.device = spec, block_size, dtype, device
        self.reaches = reaches_of(spec)
        self.pool_of = [self.reaches.index(spec.reach(layer)) for layer in spec.layers]
        shape = 2 * spec.num_key_value_heads, block_size, spec.head_dim
        # Not touched before it is used: the system gives memory block by block.
        self.layers = [
            torch.empty((num_blocks[pool], *shape), dtype=dtype, device=device) for pool in self.pool_of
        ]

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)


def reaches_of(spec: ModelSpec) -> list[int | None]:
    """What kinds of memory a model's layers need: all (None), or the last so many slots."""
    return sorted({spec.reach(layer) for layer in spec.layers}, key=lambda reach: (reach is not None, reach))


def block_bytes(spec: ModelSpec, reach: int | None, block_size: int, bytes_per_number: int) -> int:
    """Bytes of one block in all layers of a reach."""
    layers = sum(spec.reach(layer) == reach for layer in spec.layers)
    return 2 * layers * spec.num_key_value_heads * spec.head_dim * block_size * bytes_per_number


@dataclass(frozen=True)
class Part:
    """One sequence's tokens in a step: `count` rows from slot `start` on; a table of its blocks for each
    pool."""

    start: int
    count: int
    tables: list[list[int]]


class PagedStep:
    """The memory of one step. Parts of a single token come first."""

    def __init__(self, cache: PagedCache, parts: Sequence[Part]) -> None:
        self.cache, self.parts = cache, parts
        self.singles = sum(part.count == 1 for part in parts)
        size, device = cache.block_size, cache.device
        positions = [np.arange(part.start, part.start + part.count) for part in parts]
        self.positions = torch.from_numpy(np.concatenate(positions)).to(device)[None]
        ends = np.array([part.start + 1 for part in parts[: self.singles]], dtype=np.int32)
        self.lasts = torch.from_numpy(ends).to(device)
        self.tables: list[list[Tensor]] = []  # of each pool, of the parts that are more than a token
        self.single_tables: list[Tensor] = []
        self.firsts: list[Tensor] = []
        self.slots: list[Tensor] = []  # of each pool, where the step's tokens go
        for pool in range(len(cache.reaches)):
            arrays = [np.array(part.tables[pool], dtype=np.int64) for part in parts]
            where = [
                table[at // size] * size + at % size for table, at in zip(arrays, positions, strict=True)
            ]
            self.slots.append(torch.from_numpy(np.concatenate(where)).to(device))
            width = max((len(table) for table in arrays[: self.singles]), default=0)
            joined = np.zeros((self.singles, width), dtype=np.int32)
            for row, table in zip(joined, arrays[: self.singles], strict=True):
                row[: len(table)] = table
            self.single_tables.append(torch.from_numpy(joined).to(device))
            self.tables.append([torch.from_numpy(t).to(device) for t in arrays[self.singles :]])
            self.firsts.append(torch.from_numpy(self._firsts(cache.reaches[pool], ends)).to(device))
        self.slopes = alibi_slopes(cache.spec.num_attention_heads) if cache.spec.alibi else None

    def _firsts(self, reach: int | None, ends: NDArray[np.int32]) -> NDArray[np.int32]:
        """The first slot that each single token sees."""
        if reach is None:
            return np.zeros_like(ends)
        chunked = reach == self.cache.spec.attention_chunk
        firsts = (ends - 1) // reach * reach if chunked else np.maximum(0, ends - reach)
        return firsts.astype(np.int32)

    def attend(
        self, layer: int, q_BTHE: Tensor, kv_BTJE: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        """As `Memory.attend`, with B = 1 and T = N."""
        cache, pool, singles = self.cache.layers[layer], self.cache.pool_of[layer], self.singles
        write_slots(cache, self.slots[pool], kv_BTJE[0])
        outs = []
        if singles:
            biases = [self._bias(int(last)) for last in self.lasts] if self.slopes is not None else None
            tables, firsts = self.single_tables[pool], self.firsts[pool]
            q = q_BTHE[0, :singles]
            outs.append(paged_attention(q, cache, tables, firsts, self.lasts, scale, softcap, biases)[None])
        row = singles
        kind = self.cache.spec.layers[layer].attention
        for part, table in zip(self.parts[singles:], self.tables[pool], strict=True):
            window = self.cache.spec.sliding_window if kind == "sliding" else None
            chunk = self.cache.spec.attention_chunk if kind == "chunked" else None
            view = make_view(part.start, part.count, window, None, chunk, q_BTHE.device)
            end = part.start + part.count
            k, v = read_slots(cache, table, view.first, end).chunk(2, dim=1)
            bias = self._bias(end) if self.slopes is not None else None
            q = q_BTHE[:, row : row + part.count]
            outs.append(attention(q, k, v, scale, view.window, view.allowed, softcap, bias))
            row += part.count
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)

    def _bias(self, end: int) -> Tensor:
        """ALiBi's for slots [0, end)."""
        spec = self.cache.spec
        assert self.slopes is not None and spec.alibi is not None  # noqa: S101, PT018 -- asked before
        slots = torch.arange(end, device=self.cache.device)[None]
        slopes = self.slopes.to(self.cache.device)
        return alibi_bias(spec.alibi, slopes, slots, spec.attention_scale, self.cache.dtype)
