"""Products with a weight matrix, by the form in which the weight is kept.

N output features, D input features, G groups of D / G inputs. Activations are x (..., D).
int8: weight = codes * scale, one scale a row. int4: weight = (code - 8) * scale + zero, one pair a group.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from paragone.ops.choose import use_fast

GROUP = 32  # inputs that share a scale in int4; GGUF's 4-bit types use the same
MANY_ROWS = 48  # from here on products are bound by arithmetic, not by reading the weight
WIDEN = 1 << 19  # int8 codes widened at a time
INT4_ROW_MULTIPLE = 16  # PyTorch's int4 product works on blocks of 16 rows


def dense_linear(x: Tensor, weight_ND: Tensor, bias_N: Tensor | None) -> Tensor:
    """x @ weight.T + bias."""
    return F.linear(x, weight_ND, bias_N)


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN's blocked layout, twice as fast at one row, is there for such weights."""
    return (
        use_fast()
        and dtype == torch.bfloat16
        and device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def pack(weight_ND: Tensor) -> Tensor:
    """The weight in oneDNN's blocked layout: opaque, of the same size. Needs `can_pack`."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_ND, None)
    return packed


def packed_linear(x: Tensor, packed: Tensor, bias_N: Tensor | None) -> Tensor:
    """dense_linear with a weight that `pack` has laid out."""
    if not use_fast():
        return F.linear(x, packed.to_dense(), bias_N)
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, packed, bias_N, "none", [], "")
    return out


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


def int4_dequantize(codes_ND: Tensor, scale_zero_GN2: Tensor) -> Tensor:
    """(N, D) codes 0..15 and (G, N, 2) scale and zero to float32 (N, D)."""
    N, D = codes_ND.shape
    G = scale_zero_GN2.shape[0]
    scale, zero = scale_zero_GN2.float().permute(2, 1, 0).unbind(0)  # (N, G) each
    grouped = codes_ND.reshape(N, G, D // G).float() - 8
    return (grouped * scale[..., None] + zero[..., None]).reshape(N, D)


def int4_linear_reference(x: Tensor, codes_ND: Tensor, scale_zero_GN2: Tensor) -> Tensor:
    """Defines the answer: dequantise in float32, multiply in float32, round once to x's type."""
    return (x.float() @ int4_dequantize(codes_ND, scale_zero_GN2).T).to(x.dtype)


def can_pack_int4(num_rows: int, width: int, device: torch.device) -> bool:
    """Whether PyTorch's int4 product takes a weight of this shape here."""
    fits = num_rows % INT4_ROW_MULTIPLE == 0 and width % GROUP == 0
    return use_fast() and device.type == "cpu" and fits


def pack_int4(codes_ND: Tensor) -> Tensor:
    """Codes 0..15 in PyTorch's own int4 layout for the CPU, (N, D / 2) bytes."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes_ND.to(torch.int32), 1)  # type: ignore[no-any-return]


def int4_packed_linear(x: Tensor, packed: Tensor, scale_zero_GN2: Tensor) -> Tensor:
    """Product with a weight that `pack_int4` has laid out. x is bfloat16."""
    flat = x.reshape(-1, x.shape[-1])
    out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, packed, GROUP, scale_zero_GN2)
    return out.reshape(*x.shape[:-1], -1)
