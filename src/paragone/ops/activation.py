"""Activations of the MLP, plain and gated: act(up), act(gate) * up."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def activate(x: Tensor, activation: str) -> Tensor:
    """The activation alone. gelu_new and gelu_bloom are gelu_tanh written otherwise: they round otherwise."""
    if activation == "silu":
        return F.silu(x)
    if activation == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if activation == "gelu_new":
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))
    if activation == "gelu_bloom":
        return x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))
    return F.gelu(x)


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """gate_up (..., 2I), gate first -> (..., I). SwiGLU and GeGLU: arXiv 2002.05202."""
    gate, up = gate_up.chunk(2, dim=-1)
    return activate(gate, activation) * up
