"""A cache in blocks, written and read.

N tokens, K key/value heads, E head width, J = 2K. A cache is (blocks, 2K, block_size, R), the keys'
heads first; a row is E numbers, or, in eight bits (uint8), E int8 codes and a bfloat16 scale behind them. A
sequence's table names its blocks in order; slot s lies in entry s // block_size.
"""

import torch
from torch import Tensor

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
