"""Keys and values in blocks, and a step of many sequences over them.

N tokens of a step, of all its sequences together; K key/value heads, E head width, J = H + 2K.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from paragone.model.attention import make_view
from paragone.model.position import alibi_bias, alibi_slopes
from paragone.model.spec import ModelSpec
from paragone.ops import pages
from paragone.ops.attention import attention
from paragone.ops.paged import read_slots, row_shape, write_slots


class PagedCache:
    """For each layer a view (blocks, 2K, block_size, R), the keys' heads first; R is E numbers, or a row in
    eight bits. Layers of one reach share their block numbers: `reaches` names them in the order of the
    tables, `pool_of` says which a layer has."""

    def __init__(
        self,
        spec: ModelSpec,
        num_blocks: Sequence[int],
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        eight_bit: bool = False,
    ) -> None:
        self.spec, self.block_size, self.dtype, self.device = spec, block_size, dtype, device
        self.reaches = reaches_of(spec)
        self.pool_of = [self.reaches.index(spec.reach(layer)) for layer in spec.layers]
        width, row_type = row_shape(spec.head_dim, dtype, eight_bit=eight_bit)
        shape = 2 * spec.num_key_value_heads, block_size, width
        # A block has all layers, one after the other: what a step reads lies in as few of the system's pages
        # as there can be. Not touched before it is used: the system gives memory page by page.
        self.pools = [
            _empty((num_blocks[pool], self.pool_of.count(pool), *shape), row_type, device)
            for pool in range(len(self.reaches))
        ]
        before = [self.pool_of[:number].count(pool) for number, pool in enumerate(self.pool_of)]
        self.layers = [self.pools[pool][:, at] for pool, at in zip(self.pool_of, before, strict=True)]
        self.block_bytes = [
            block_bytes(spec, reach, block_size, dtype, eight_bit=eight_bit) for reach in self.reaches
        ]

    @property
    def nbytes(self) -> int:
        return sum(pool.nbytes for pool in self.pools)


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return pages.empty(shape, dtype)
    return torch.empty(shape, dtype=dtype, device=device)


def reaches_of(spec: ModelSpec) -> list[int | None]:
    """What kinds of memory a model's layers need: all (None), or the last so many slots."""
    return sorted({spec.reach(layer) for layer in spec.layers}, key=lambda reach: (reach is not None, reach))


def block_bytes(
    spec: ModelSpec, reach: int | None, block_size: int, dtype: torch.dtype, *, eight_bit: bool = False
) -> int:
    """Bytes of one block in all layers of a reach."""
    layers = sum(spec.reach(layer) == reach for layer in spec.layers)
    width, row_type = row_shape(spec.head_dim, dtype, eight_bit=eight_bit)
    return 2 * layers * spec.num_key_value_heads * block_size * width * row_type.itemsize


@dataclass(slots=True)
class Part:
    """One sequence's tokens in a step: `count` rows from slot `start` on, the last `wanted` of which are
    asked for; a table of its blocks for each pool."""

    start: int
    count: int
    wanted: int
    tables: list[list[int]]

    def cut(self, at: int, count: int) -> "Part":
        """Rows [at, at + count) of it."""
        before = self.count - self.wanted
        return Part(self.start + at, count, max(0, min(count, at + count - before)), self.tables)


class PagedStep:
    """The memory of one step in PyTorch: part after part."""

    def __init__(self, cache: PagedCache, parts: Sequence[Part]) -> None:
        self.cache, self.parts = cache, parts
        size, device = cache.block_size, cache.device
        positions = [np.arange(part.start, part.start + part.count) for part in parts]
        self.positions = torch.from_numpy(np.concatenate(positions)).to(device)[None]
        self.tables: list[list[Tensor]] = []  # of each pool
        self.slots: list[Tensor] = []  # of each pool, where the step's tokens go
        for pool in range(len(cache.reaches)):
            arrays = [np.array(part.tables[pool], dtype=np.int64) for part in parts]
            where = [
                table[at // size] * size + at % size for table, at in zip(arrays, positions, strict=True)
            ]
            self.slots.append(torch.from_numpy(np.concatenate(where)).to(device))
            self.tables.append([torch.from_numpy(table).to(device) for table in arrays])
        self.bias = None if cache.spec.alibi is None else self._bias(cache.spec.alibi)

    def attend(
        self, layer: int, q_BTHE: Tensor, kv_BTJE: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        """As `Memory.attend`, with B = 1 and T = N."""
        cache, pool = self.cache.layers[layer], self.cache.pool_of[layer]
        write_slots(cache, self.slots[pool], kv_BTJE[0])
        outs, row = [], 0
        kind = self.cache.spec.layers[layer].attention
        window = self.cache.spec.sliding_window if kind == "sliding" else None
        chunk = self.cache.spec.attention_chunk if kind == "chunked" else None
        for part, table in zip(self.parts, self.tables[pool], strict=True):
            view = make_view(part.start, part.count, window, chunk, q_BTHE.device)
            end = part.start + part.count
            k, v = read_slots(cache, table, view.first, end, q_BTHE.dtype).chunk(2, dim=1)
            bias = None if self.bias is None else self.bias[None, :, view.first : end].to(q_BTHE.dtype)
            q = q_BTHE[:, row : row + part.count]
            outs.append(attention(q, k, v, scale, view.window, view.allowed, softcap, bias))
            row += part.count
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)

    def _bias(self, alibi: str) -> Tensor:
        """ALiBi's (H, S), for as many slots as any part has."""
        spec, cache = self.cache.spec, self.cache
        slots = torch.arange(max(part.start + part.count for part in self.parts), device=cache.device)[None]
        slopes = alibi_slopes(spec.num_attention_heads).to(cache.device)
        return alibi_bias(alibi, slopes, slots, spec.attention_scale, cache.dtype)[0].float()
