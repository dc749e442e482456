"""Products with a weight in one or several parts stacked by rows: numbers, compressed or packed."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from paragone.ops.choose import use_fast
from paragone.ops.compressed import CompressedMatrix
from paragone.ops.hadamard import RUN as TURNED
from paragone.ops.hadamard import HadamardMatrix, turned
from paragone.ops.packed import PANEL, PackedMatrix

Matrix = PackedMatrix | HadamardMatrix | CompressedMatrix
Part = Tensor | Matrix
RUN = 1 << 19  # numbers dequantised at a time: they stay in the processor's cache


def linear(x: Tensor, parts_ND: Sequence[Part], bias_N: Tensor | None) -> Tensor:
    """x (..., D) @ weight.T + bias."""
    biases = [None] * len(parts_ND)
    if bias_N is not None:
        biases = bias_N.split_with_sizes([len(part) for part in parts_ND])  # type: ignore[assignment]
    out = [_product(x, part, b) for part, b in zip(parts_ND, biases, strict=True)]
    return out[0] if len(out) == 1 else torch.cat(out, dim=-1)


def _product(x: Tensor, part: Part, bias: Tensor | None) -> Tensor:
    if isinstance(part, Tensor):
        return F.linear(x, part, bias)
    return (matrix_linear if use_fast() else matrix_linear_reference)(x, part, bias)


def matrix_linear_reference(x: Tensor, weight: Matrix, bias_N: Tensor | None = None) -> Tensor:
    """Defines the answer: dequantise, multiply and add the bias in float32, round once to x's type."""
    y = x.float() @ weight.dequantize().float().T
    return (y if bias_N is None else y + bias_N.float()).to(x.dtype)


def matrix_linear(x: Tensor, weight: Matrix, bias_N: Tensor | None = None) -> Tensor:
    """As the reference, a run of rows at a time, in x's type."""
    flat, rows = x.reshape(-1, x.shape[-1]), weight.dequantize
    if isinstance(weight, HadamardMatrix):  # turning the inputs is less work than turning the weights
        flat, rows = (turned(flat) / TURNED).to(x.dtype), weight.turned_rows
    y = x.new_empty(len(flat), weight.rows)
    step = max(PANEL, RUN // weight.width // PANEL * PANEL)
    for at in range(0, weight.rows, step):
        end = min(at + step, weight.rows)
        bias = None if bias_N is None else bias_N[at:end]
        y[:, at:end] = F.linear(flat, rows(at, end).to(x.dtype), bias)
    return y.reshape(*x.shape[:-1], -1)
