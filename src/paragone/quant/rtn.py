"""Round-to-nearest quantisation, row by row, so that a matrix can be quantised while it is read.

Scales are rounded to bfloat16 first and the codes are chosen for the rounded scales, so that what the
products use is what the error was minimised for.
"""

import torch
from torch import Tensor

from paragone.ops.linear import GROUP, int4_join


def quantize_int8(rows_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Float rows to int8 codes (N, D) and bfloat16 scales (N): weight = codes * scale."""
    rows = rows_ND.float()
    scale = (rows.abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.bfloat16).tiny).bfloat16()
    codes = (rows / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    return codes, scale


def quantize_int4(rows_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Float rows to codes (N, D / 2), two to a byte, and (N, G, 2) bfloat16 scale and zero:
    weight = (code - 8) * scale + zero."""
    N, D = rows_ND.shape
    groups = rows_ND.float().reshape(N, D // GROUP, GROUP)
    low, high = groups.aminmax(dim=2)
    scale = ((high - low) / 15).clamp_min(torch.finfo(torch.bfloat16).tiny).bfloat16()
    zero = (low + 8 * scale.float()).bfloat16()
    codes = ((groups - zero.float()[..., None]) / scale.float()[..., None]).round() + 8
    codes = codes.clamp(0, 15).to(torch.uint8).reshape(N, D)
    return int4_join(codes), torch.stack((scale, zero), dim=-1)
