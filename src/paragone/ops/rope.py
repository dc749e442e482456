"""Rotary position embedding in the half-split layout (arXiv 2104.09864): (x1, x2) is turned to
(x1 cos - x2 sin, x2 cos + x1 sin)."""

import torch
from torch import Tensor

from paragone.ops.choose import use_fast


def rotate_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Defines the answer: x * cos + rot(x) * sin with rot(x) = (-x2, x1), each product rounded to x's type.

    x (..., E), cos and sin broadcastable with equal halves; `sin` is unsigned.
    """
    x1, x2 = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-x2, x1), dim=-1) * sin


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """As the reference, in place; `sin` carries rot's sign in its first half, so the rotation is one roll."""
    half = x.shape[-1] // 2
    if use_fast():
        turned = x.roll(half, -1).mul_(sin)
        x.mul_(cos).add_(turned)
    else:
        x.copy_(rotate_reference(x, cos, torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)))
