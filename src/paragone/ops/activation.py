"""Gated activations of the MLP: act(gate) * up."""

import torch.nn.functional as F
from torch import Tensor


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """gate_up (..., 2I), gate first -> (..., I). SwiGLU and GeGLU: arXiv 2002.05202."""
    gate, up = gate_up.chunk(2, dim=-1)
    if activation == "silu":
        return F.silu(gate).mul_(up)
    if activation == "gelu_tanh":
        return F.gelu(gate, approximate="tanh").mul_(up)
    return F.gelu(gate).mul_(up)
