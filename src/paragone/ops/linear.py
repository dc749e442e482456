"""Products with a weight that lies in one or several parts stacked by rows, numbers or packed codes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from paragone.ops.choose import use_fast
from paragone.ops.packed import PackedMatrix, packed_linear, packed_linear_reference

Part = Tensor | PackedMatrix


def linear(x: Tensor, parts_ND: Sequence[Part], bias_N: Tensor | None) -> Tensor:
    """x (..., D) @ weight.T + bias."""
    biases = [None] * len(parts_ND)
    if bias_N is not None:
        biases = bias_N.split_with_sizes([len(part) for part in parts_ND])  # type: ignore[assignment]
    out = [_product(x, part, b) for part, b in zip(parts_ND, biases, strict=True)]
    return out[0] if len(out) == 1 else torch.cat(out, dim=-1)


def _product(x: Tensor, part: Part, bias: Tensor | None) -> Tensor:
    if isinstance(part, Tensor):
        return F.linear(x, part, bias)
    y = (packed_linear if use_fast() else packed_linear_reference)(x, part)
    return y if bias is None else y + bias
