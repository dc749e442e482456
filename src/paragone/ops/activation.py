"""Gated activations of the MLP: act(gate) * up."""

import torch.nn.functional as F
from torch import Tensor

from paragone.ops.choose import kernels_for

KERNEL_CODES = {"silu": 0, "gelu_tanh": 1}


def gated_reference(gate_up: Tensor, activation: str) -> Tensor:
    """Defines the answer. gate_up (..., 2I), gate first -> (..., I). SwiGLU and GeGLU: arXiv 2002.05202."""
    gate, up = gate_up.chunk(2, dim=-1)
    if activation == "silu":
        return F.silu(gate) * up
    if activation == "gelu_tanh":
        return F.gelu(gate, approximate="tanh") * up
    return F.gelu(gate) * up


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """As the reference; the kernel rounds once, not twice."""
    kernels = kernels_for(gate_up)
    code = KERNEL_CODES.get(activation)
    if kernels is None or code is None or not gate_up.is_contiguous():
        return gated_reference(gate_up, activation)
    width = gate_up.shape[-1] // 2
    y = gate_up.new_empty(*gate_up.shape[:-1], width)
    kernels.gated(gate_up.data_ptr(), y.data_ptr(), code, y.numel() // width, width)
    return y
