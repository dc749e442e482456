"""Attention over a cache in blocks, one query token of each of several sequences.

N sequences, H query heads, K key/value heads, E head width. A cache is (blocks, 2K, block_size, R), the keys'
heads first; a row is E numbers, or, in eight bits (uint8), E int8 codes and a bfloat16 scale behind them. A
sequence's table names its blocks in order; slot s lies in entry s // block_size.
"""

import torch
from torch import Tensor

from paragone.ops.attention import attention
from paragone.ops.choose import kernels_for

SCALE_BYTES = 2


def row_shape(head_dim: int, dtype: torch.dtype, *, eight_bit: bool) -> tuple[int, torch.dtype]:
    """Length and type of a cache's rows."""
    return (head_dim + SCALE_BYTES, torch.uint8) if eight_bit else (head_dim, dtype)


def quantize_rows(x: Tensor) -> Tensor:
    """(..., E) to eight-bit rows (..., E + 2): codes from -127 to 127, times a bfloat16 scale."""
    wide = x.float()
    scale = (wide.abs().amax(-1, keepdim=True) / 127).bfloat16()
    inverse = torch.where(scale == 0, 0.0, 1 / scale.float())
    codes = (wide * inverse).round().clamp(-127, 127).to(torch.int8)
    return torch.cat((codes.view(torch.uint8), scale.view(torch.uint8)), dim=-1)


def dequantize_rows(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """What `quantize_rows` has made, as numbers."""
    codes = rows[..., :-SCALE_BYTES].view(torch.int8)
    scale = rows[..., -SCALE_BYTES:].contiguous().view(torch.bfloat16)
    return (codes.float() * scale.float()).to(dtype)


def write_slots(cache: Tensor, slots_N: Tensor, kv_NJE: Tensor) -> None:
    """Puts the keys and values of N tokens into their slots, counted over all blocks."""
    block_size, eight_bit = cache.shape[2], cache.dtype == torch.uint8
    kernels = kernels_for(kv_NJE)
    fits = eight_bit or kv_NJE.dtype == cache.dtype
    if kernels is not None and fits and kv_NJE.stride()[1:] == (kv_NJE.shape[2], 1):
        where = kv_NJE.data_ptr(), cache.data_ptr(), slots_N.data_ptr()
        kernels.cache_write(*where, *kv_NJE.shape, block_size, eight_bit, kv_NJE.stride(0))
        return
    rows = quantize_rows(kv_NJE) if eight_bit else kv_NJE
    cache[slots_N // block_size, :, slots_N % block_size] = rows


def read_slots(cache: Tensor, table: Tensor, first: int, last: int, dtype: torch.dtype) -> Tensor:
    """A copy of slots [first, last) of a sequence, (1, 2K, slots, E)."""
    block_size = cache.shape[2]
    begin = first // block_size
    blocks = cache[table[begin : -(-last // block_size)]]  # (n, 2K, block_size, R)
    joined = blocks.transpose(0, 1).flatten(1, 2)
    rows = joined[None, :, first - begin * block_size : last - begin * block_size]
    return dequantize_rows(rows, dtype) if cache.dtype == torch.uint8 else rows


def paged_attention_reference(
    q_NHE: Tensor,
    cache: Tensor,
    tables: list[Tensor],
    firsts: list[int],
    lasts: list[int],
    scale: float,
    softcap: float | None = None,
    bias_HS: Tensor | None = None,
) -> Tensor:
    """Defines the answer: each sequence by itself over a copy of its slots [first, last). `bias_HS` is added
    to the scores of every slot from 0 on."""
    out = torch.empty_like(q_NHE)
    for n, (table, first, last) in enumerate(zip(tables, firsts, lasts, strict=True)):
        k, v = read_slots(cache, table, first, last, q_NHE.dtype).chunk(2, dim=1)
        bias = None if bias_HS is None else bias_HS[None, :, first:last].to(q_NHE.dtype)
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
    bias_HS: Tensor | None = None,
) -> Tensor:
    """The same, with tables, firsts and lasts as int32 tensors and the bias in float32."""
    kernels = kernels_for(q_NHE)
    E = q_NHE.shape[2]
    if kernels is not None and q_NHE.stride()[1:] == (E, 1):
        N, H, _ = q_NHE.shape
        out = q_NHE.new_empty(N, H, E)
        where = q_NHE.data_ptr(), cache.data_ptr(), out.data_ptr()
        sizes = N, H, cache.shape[1] // 2, E, cache.shape[2], cache.dtype == torch.uint8
        seen = tables_NW.data_ptr(), tables_NW.shape[1], firsts_N.data_ptr(), lasts_N.data_ptr()
        bias = (0, 0) if bias_HS is None else (bias_HS.data_ptr(), bias_HS.stride(0))
        kernels.paged_attention(*where, scale, *sizes, *seen, q_NHE.stride(0), softcap or 0.0, *bias)
        return out
    rows = [row.long() for row in tables_NW]
    return paged_attention_reference(
        q_NHE, cache, rows, firsts_N.tolist(), lasts_N.tolist(), scale, softcap, bias_HS
    )
