"""Products with a weight matrix, by the form in which the weight is kept.

N output features, D input features, G groups of 32 inputs. Activations are x (..., D).
bf16, fp32: numbers as they are. int8: weight = codes * scale, one scale a row.
int4: weight = (code - 8) * scale + zero, one pair a group; byte i of a group holds input i in its low and
input i + 16 in its high half.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from paragone.kernels import native
from paragone.ops.choose import has_kernels, is_deterministic, kernels_for, use_fast

GROUP = 32  # inputs that share a scale in int4; GGUF's 4-bit types use the same
# Up to so many rows of x the kernels' products are the faster ones.
FEW_ROWS = {"bf16": 8, "int8": 2, "int4": 16}
# Where the kernels multiply bfloat16 in pairs they are so up to more, and as long as x stays in a near cache.
PAIRED_ROWS, PAIRED_INPUTS = 16, 96 << 10
MANY_ROWS = 48  # where PyTorch's own int8 product falls behind one in bfloat16
WIDEN = 1 << 19  # codes widened at a time: they stay in the cache
INT4_ROW_MULTIPLE = 16  # PyTorch's int4 product works on blocks of 16 rows

Form = Literal["bf16", "int8", "int4"]


class KernelMatrix:
    """A weight as the kernels see it: where its rows lie. The caller keeps the tensors alive."""

    def __init__(
        self, form: Form, width: int, parts: Sequence[tuple[Tensor, Tensor | None]], bias_N: Tensor | None
    ) -> None:
        """Parts are codes and scales, stacked by rows."""
        rows = [(c.data_ptr(), 0 if s is None else s.data_ptr(), len(c)) for c, s in parts]
        bias = 0 if bias_N is None else bias_N.data_ptr()
        self.matrix = native.Matrix(form, width, rows, bias)
        self.width, self.num_rows, self.bias = width, sum(len(c) for c, _ in parts), bias_N
        self.most = FEW_ROWS[form] * width
        if form == "bf16" and native.pairs:
            self.most = max(PAIRED_ROWS * width, PAIRED_INPUTS)

    def takes(self, x: Tensor) -> bool:
        """Whether this product is bound by reading the weight, and x one that the kernel takes."""
        return (x.numel() <= self.most or is_deterministic()) and kernels_for(x) is not None

    def multiply(self, x: Tensor) -> Tensor:
        """x @ weight.T + bias. Needs `takes`."""
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], self.num_rows)
        self.matrix.multiply(x.data_ptr(), y.data_ptr(), x.numel() // self.width, False)
        return y

    def multiply_unrounded(self, x: Tensor) -> Tensor:
        """The same in float32, for a weight without bias."""
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], self.num_rows, dtype=torch.float32)
        self.matrix.multiply(x.data_ptr(), y.data_ptr(), x.numel() // self.width, True)
        return y

    def multiply_widened(self, x: Tensor) -> Tensor:
        """The same for many rows of x and int4: a run of the weight's rows at a time as bfloat16."""
        flat = x.reshape(-1, self.width)
        y = x.new_empty(len(flat), self.num_rows)
        step = max(1, WIDEN // self.width)
        room = x.new_empty(min(step, self.num_rows), self.width)
        for at in range(0, self.num_rows, step):
            count = min(step, self.num_rows - at)
            self.matrix.dequantize(at, count, room.data_ptr())
            bias = None if self.bias is None else self.bias[at : at + count]
            y[:, at : at + count] = F.linear(flat, room[:count], bias)
        return y.reshape(*x.shape[:-1], -1)


def kernel_matrix(
    form: Form, parts: Sequence[tuple[Tensor, Tensor | None]], width: int, bias_N: Tensor | None
) -> KernelMatrix | None:
    """The weight for the kernels, or None where they cannot be used."""
    floats = [t for part in parts for t in part if t is not None and t.is_floating_point()]
    fits = all(t.dtype == torch.bfloat16 for t in (*floats, *([] if bias_N is None else [bias_N])))
    if not has_kernels() or parts[0][0].device.type != "cpu" or not fits:
        return None
    return KernelMatrix(form, width, parts, bias_N)


def dense_linear(x: Tensor, parts_ND: Sequence[Tensor], bias_N: Tensor | None) -> Tensor:
    """x @ weight.T + bias, the weight in one or several parts stacked by rows."""
    if len(parts_ND) == 1:
        return F.linear(x, parts_ND[0], bias_N)
    biases = (
        [None] * len(parts_ND)
        if bias_N is None
        else bias_N.split_with_sizes([len(part) for part in parts_ND])
    )
    return torch.cat([F.linear(x, part, b) for part, b in zip(parts_ND, biases, strict=True)], dim=-1)


def int8_linear_reference(x: Tensor, codes_ND: Tensor, scale_N: Tensor) -> Tensor:
    """Defines the answer: dequantise in float32, multiply in float32, round once to x's type."""
    return (x.float() @ (codes_ND.float() * scale_N.float()[:, None]).T).to(x.dtype)


def int8_linear(x: Tensor, codes_ND: Tensor, scale_N: Tensor) -> Tensor:
    """Product with an int8 weight that has one scale a row."""
    if not use_fast() or x.dtype != torch.bfloat16:
        return int8_linear_reference(x, codes_ND, scale_N)
    flat = x.reshape(-1, x.shape[-1])
    if x.device.type == "cpu" and len(flat) < MANY_ROWS:
        return torch._weight_int8pack_mm(flat, codes_ND, scale_N).reshape(*x.shape[:-1], -1)
    # bfloat16 holds every int8 code exactly, and its product is several times faster at many rows. The
    # codes are widened a run of rows at a time, small enough to stay in the processor's cache.
    y = x.new_empty(len(flat), len(codes_ND))
    step = max(1, WIDEN // x.shape[-1])
    for at in range(0, len(codes_ND), step):
        run = slice(at, at + step)
        y[:, run] = F.linear(flat, codes_ND[run].bfloat16()).mul_(scale_N[run])
    return y.reshape(*x.shape[:-1], -1)


def int4_join(codes_ND: Tensor) -> Tensor:
    """Codes 0..15 (N, D) two to a byte, (N, D / 2)."""
    N, D = codes_ND.shape
    halves = codes_ND.reshape(N, D // GROUP, 2, GROUP // 2)
    return (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(N, D // 2)


def int4_split(bytes_ND: Tensor) -> Tensor:
    """What `int4_join` joined."""
    N, half = bytes_ND.shape
    groups = bytes_ND.reshape(N, -1, GROUP // 2)
    return torch.cat((groups & 15, groups >> 4), dim=2).reshape(N, 2 * half)


def int4_dequantize(codes_ND: Tensor, scale_zero_NG2: Tensor) -> Tensor:
    """(N, D) codes 0..15 and (N, G, 2) scale and zero to float32 (N, D)."""
    N, D = codes_ND.shape
    scale, zero = scale_zero_NG2.float().unbind(2)  # (N, G) each
    grouped = codes_ND.reshape(N, D // GROUP, GROUP).float() - 8
    return (grouped * scale[..., None] + zero[..., None]).reshape(N, D)


def int4_linear_reference(x: Tensor, codes_ND: Tensor, scale_zero_NG2: Tensor) -> Tensor:
    """Defines the answer: dequantise in float32, multiply in float32, round once to x's type."""
    return (x.float() @ int4_dequantize(codes_ND, scale_zero_NG2).T).to(x.dtype)


def can_pack_int4(num_rows: int, width: int, device: torch.device) -> bool:
    """Whether PyTorch's int4 product is what runs here, and takes a weight of this shape."""
    fits = num_rows % INT4_ROW_MULTIPLE == 0 and width % GROUP == 0
    return use_fast() and not has_kernels() and device.type == "cpu" and fits


def pack_int4(codes_ND: Tensor) -> Tensor:
    """Codes 0..15 in PyTorch's own int4 layout for the CPU, (N, D / 2) bytes."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes_ND.to(torch.int32), 1)  # type: ignore[no-any-return]


def int4_packed_linear(x: Tensor, packed: Tensor, scale_zero_GN2: Tensor) -> Tensor:
    """Product with a weight that `pack_int4` has laid out. x is bfloat16."""
    flat = x.reshape(-1, x.shape[-1])
    out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, packed, GROUP, scale_zero_GN2)
    return out.reshape(*x.shape[:-1], -1)
