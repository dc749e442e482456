"""Activations of the MLP, plain and gated: act(up), act(gate) * up."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from paragone.ops.choose import kernels_for
from paragone.ops.elementwise import apart

KERNEL_CODES = {"silu": 0, "gelu_tanh": 1}


def activate(x: Tensor, activation: str) -> Tensor:
    """The activation alone."""
    return apart(lambda piece: _activate(piece, activation), x)


def _activate(x: Tensor, activation: str) -> Tensor:
    """gelu_new and gelu_bloom are gelu_tanh written otherwise: they round otherwise."""
    if activation == "silu":
        return F.silu(x)
    if activation == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if activation == "gelu_new":
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))
    if activation == "gelu_bloom":
        return x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))
    return F.gelu(x)


def gated_reference(gate_up: Tensor, activation: str) -> Tensor:
    """Defines the answer. gate_up (..., 2I), gate first -> (..., I). SwiGLU and GeGLU: arXiv 2002.05202."""
    gate, up = gate_up.chunk(2, dim=-1)
    return activate(gate, activation) * up


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
