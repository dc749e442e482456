"""Attention over a cache in blocks, one query token of each of several sequences.

N sequences, H query heads, K key/value heads, E head width; a cache is (blocks, 2K, block_size, E), the keys'
heads first. A sequence's table names its blocks in order; slot s lies in entry s // block_size.
"""

import torch
from torch import Tensor

from paragone.ops.attention import attention
from paragone.ops.choose import kernels_for


def write_slots(cache: Tensor, slots_N: Tensor, kv_NJE: Tensor) -> None:
    """Puts the keys and values of N tokens into their slots, counted over all blocks."""
    block_size = cache.shape[2]
    kernels = kernels_for(cache)
    if kernels is not None and kv_NJE.dtype == cache.dtype and kv_NJE.stride()[1:] == (kv_NJE.shape[2], 1):
        where = kv_NJE.data_ptr(), cache.data_ptr(), slots_N.data_ptr()
        kernels.cache_write(*where, *kv_NJE.shape, block_size, kv_NJE.stride(0))
        return
    cache[slots_N // block_size, :, slots_N % block_size] = kv_NJE


def read_slots(cache: Tensor, table: Tensor, first: int, last: int) -> Tensor:
    """A copy of slots [first, last) of a sequence, (1, 2K, slots, E)."""
    block_size = cache.shape[2]
    begin = first // block_size
    blocks = cache[table[begin : -(-last // block_size)]]  # (n, 2K, block_size, E)
    joined = blocks.transpose(0, 1).flatten(1, 2)
    return joined[None, :, first - begin * block_size : last - begin * block_size]


def paged_attention_reference(
    q_NHE: Tensor,
    cache: Tensor,
    tables: list[Tensor],
    firsts: list[int],
    lasts: list[int],
    scale: float,
    softcap: float | None = None,
    biases: list[Tensor] | None = None,
) -> Tensor:
    """Defines the answer: each sequence by itself over a copy of its slots [first, last)."""
    out = torch.empty_like(q_NHE)
    for n, (table, first, last) in enumerate(zip(tables, firsts, lasts, strict=True)):
        k, v = read_slots(cache, table, first, last).chunk(2, dim=1)
        bias = None if biases is None else biases[n]
        out[n] = attention(q_NHE[n : n + 1, None], k, v, scale, softcap=softcap, bias_BHS=bias)[0, 0]
    return out


def paged_attention(
    q_NHE: Tensor,
    cache: Tensor,
    tables_NW: Tensor,
    firsts_N: Tensor,
    lasts_N: Tensor,
    scale: float,
    softcap: float | None = None,
    biases: list[Tensor] | None = None,
) -> Tensor:
    """The same, with tables, firsts and lasts as int32 tensors."""
    kernels = kernels_for(q_NHE)
    if (
        kernels is not None
        and softcap is None
        and biases is None
        and q_NHE.stride()[1:] == (cache.shape[3], 1)
    ):
        N, H, E = q_NHE.shape
        out = q_NHE.new_empty(N, H, E)
        where = q_NHE.data_ptr(), cache.data_ptr(), out.data_ptr()
        sizes = N, H, cache.shape[1] // 2, E, cache.shape[2]
        seen = tables_NW.data_ptr(), tables_NW.shape[1], firsts_N.data_ptr(), lasts_N.data_ptr()
        kernels.paged_attention(*where, scale, *sizes, *seen, q_NHE.stride(0))
        return out
    rows = [row.long() for row in tables_NW]
    return paged_attention_reference(
        q_NHE, cache, rows, firsts_N.tolist(), lasts_N.tolist(), scale, softcap, biases
    )
