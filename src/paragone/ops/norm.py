"""RMSNorm over the last dimension (arXiv 1910.07467)."""

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
    """x (..., D), weight (D) or broadcastable (H, D) to x's (..., H, D)."""
    if not use_fast():
        return rms_norm_reference(x, weight, eps)
    width = (x.shape[-1],)
    if weight.dtype == x.dtype:
        return F.rms_norm(x, width, None, eps) * weight
    return (F.rms_norm(x.float(), width, None, eps) * weight).to(x.dtype)
