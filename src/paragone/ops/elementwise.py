"""PyTorch's functions of single numbers, where results must not depend on what is computed beside them."""

from collections.abc import Callable

import torch
from torch import Tensor

from paragone.ops.choose import is_deterministic

PIECE = 16384  # numbers: few enough that PyTorch gives them to one thread


def apart(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x); in the deterministic mode row by row. Of a long run the vector and the scalar form of a
    function share the work, rows and threads decide where, and the two may round differently."""
    if not is_deterministic() or not x.numel():
        return function(x)
    rows = x.reshape(-1, x.shape[-1])
    return torch.cat([function(piece) for row in rows for piece in row.split(PIECE)]).reshape(x.shape)
