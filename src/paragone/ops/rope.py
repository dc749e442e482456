"""Rotary position embedding (arXiv 2104.09864): (x1, x2) is turned to (x1 cos - x2 sin, x2 cos + x1 sin). In
the half-split layout x1 and x2 are the halves of what is turned, in the other they are neighbours."""

import torch
from torch import Tensor

from paragone.ops.choose import use_fast


def rotate_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Defines the answer: x * cos + rot(x) * sin with rot(x) = (-x2, x1), each product rounded to x's type.

    x (..., E), cos and sin broadcastable with equal halves; `sin` is unsigned.
    """
    x1, x2 = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-x2, x1), dim=-1) * sin


def rotate_(x_BTHE: Tensor, cos: Tensor, sin: Tensor) -> None:
    """As the reference, in place, on x (B, T, H, E) with cos and sin (B or 1, T, 1, E); `sin` carries rot's
    sign in its first half, so the rotation is one roll."""
    E = x_BTHE.shape[3]
    if use_fast():
        turned = x_BTHE.roll(E // 2, -1).mul_(sin)
        x_BTHE.mul_(cos).add_(turned)
    else:
        unsigned = torch.cat((-sin[..., : E // 2], sin[..., E // 2 :]), dim=-1)
        x_BTHE.copy_(rotate_reference(x_BTHE, cos, unsigned))


def rotate_pairs_(x_BTHE: Tensor, cos: Tensor, sin: Tensor) -> None:
    """In place for neighbours (2i, 2i + 1), in float32; cos and sin (B or 1, T, 1, E / 2) float32."""
    x1, x2 = x_BTHE.float().reshape(*x_BTHE.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)
    x_BTHE.copy_(turned.flatten(-2))
