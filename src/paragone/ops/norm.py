"""Norms over the last dimension: RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from paragone.ops.choose import use_fast


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Defines the answer: x̂ in float32; a weight in x's type multiplies the rounded x̂ (Llama), a float32
    weight multiplies before rounding (Gemma)."""
    h = x.float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return weight * h.to(x.dtype) if weight.dtype == x.dtype else (h * weight).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., D), weight (D)."""
    if not use_fast():
        return rms_norm_reference(x, weight, eps)
    # The same numbers in place: half the calls of torch's own rms_norm, which matters at one token.
    h = x.float() if x.dtype != torch.float32 else x.clone()
    scale = torch.linalg.vector_norm(h, dim=-1, keepdim=True)
    h.mul_(scale.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_())
    return h.to(x.dtype).mul_(weight) if weight.dtype == x.dtype else h.mul_(weight).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x (..., D), weight and bias (D)."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def l2_norm(x: Tensor, eps: float) -> Tensor:
    """RMSNorm without a weight: x̂ in x's type."""
    h = x.float()
    return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def head_norm_(x_BTHE: Tensor, weight_HE: Tensor, eps: float) -> None:
    """Each head by its own weight, in place. x may be the first heads of a wider (B, T, J, E)."""
    x_BTHE.copy_(rms_norm(x_BTHE, weight_HE, eps))
