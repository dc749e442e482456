"""Norms over the last dimension: RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from paragone.ops.choose import kernels_for, use_fast


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Defines the answer: x̂ in float32; a weight in x's type multiplies the rounded x̂ (Llama), a float32
    weight multiplies before rounding (Gemma)."""
    h = x.float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return weight * h.to(x.dtype) if weight.dtype == x.dtype else (h * weight).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., D), weight (D)."""
    kernels = kernels_for(x)
    if kernels is not None and x.is_contiguous():
        y = torch.empty_like(x)
        D = x.shape[-1]
        wide = weight.dtype == torch.float32
        kernels.rms_norm(
            x.data_ptr(), y.data_ptr(), weight.data_ptr(), wide, eps, x.numel() // D, 1, D, D, D, False
        )
        return y
    return _rms_norm(x, weight, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x (..., D), weight and bias (D)."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def l2_norm(x: Tensor, eps: float) -> Tensor:
    """RMSNorm without a weight: x̂ in x's type."""
    h = x.float()
    return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def head_norm_(x_BTHE: Tensor, weight_HE: Tensor, eps: float) -> None:
    """Each head by its own weight, in place. x may be the first heads of a wider (B, T, J, E)."""
    kernels = kernels_for(x_BTHE)
    if kernels is None or not heads_are_runs(x_BTHE):
        x_BTHE.copy_(_rms_norm(x_BTHE, weight_HE, eps))
        return
    B, T, H, E = x_BTHE.shape
    at, stride = x_BTHE.data_ptr(), x_BTHE.stride(1)
    wide = weight_HE.dtype == torch.float32
    kernels.rms_norm(at, at, weight_HE.data_ptr(), wide, eps, B * T, H, E, stride, stride, True)


def heads_are_runs(x_BTHE: Tensor) -> bool:
    """Whether a token's heads lie one after the other, and tokens at one distance from each other."""
    batch, token, head, number = x_BTHE.stride()
    return number == 1 and head == x_BTHE.shape[3] and batch == x_BTHE.shape[1] * token


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if not use_fast():
        return rms_norm_reference(x, weight, eps)
    # The same numbers in place: half the calls of torch's own rms_norm, which matters at one token.
    h = x.float() if x.dtype != torch.float32 else x.clone()
    scale = torch.linalg.vector_norm(h, dim=-1, keepdim=True)
    h.mul_(scale.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_())
    return h.to(x.dtype).mul_(weight) if weight.dtype == x.dtype else h.mul_(weight).to(x.dtype)
