"""Single operations of the kernels as plans of their own."""

import numpy as np
import torch

from paragone import kernels
from paragone.ops.compressed import CompressedMatrix
from paragone.ops.hadamard import HadamardMatrix, turned
from paragone.ops.packed import LAYOUTS, PackedMatrix, Packing
from paragone.ops.paged import row_shape

native = kernels.native
PAIRS = native is not None and native.pairs
FIXED = native is not None and native.fixed
STEP = 2**-8 if PAIRS else 2e-6  # of an input of a product with bfloat16


def in_words(tokens, deterministic=False):
    """Whether packed weights are multiplied in bfloat16."""
    return tokens >= native.words_from and not deterministic


def as_multiplied(matrix, tokens, deterministic=False):
    """A packed weight in float64, as it is multiplied: in words, its numbers are rounded to float16, times 2^12, and
    from there to bfloat16, ties to the larger."""
    weight = matrix.dequantize()
    if in_words(tokens, deterministic):
        weight = ((weight * 2**12).half().view(torch.int16) + 4 & -8).view(torch.half).double() * 2**-12
    return weight.double()


def run(x, op, width, deterministic=False):
    """One operation from rows x (T, D) to (T, width)."""
    plan, y = native.Plan([x.shape[1]]), torch.full((len(x), width), 77.0)
    plan.add(op)
    plan.run_head(2, len(x), x.data_ptr(), deterministic, y.data_ptr())
    return y


def seen(part):
    """A part of a weight for the kernels. It must stay alive."""
    if isinstance(part, CompressedMatrix):
        return native.in_bfloat16(*part.addresses, part.rows, part.width)
    if isinstance(part, HadamardMatrix):
        return native.in_hadamard(part.panels.data_ptr(), part.rows, part.width)
    return native.packed(part.packing.native, part.panels.data_ptr(), part.rows, part.width)


def linear(parts, bias=None, prologue=None, epilogue=None):
    """A product from the plan's input to its output. Parts must stay alive."""
    width = parts[0].width
    at = 0 if bias is None else bias.data_ptr()
    return native.Linear(
        native.X, native.OUT, width, [seen(part) for part in parts], at,
        prologue or native.Prologue(), epilogue or native.Epilogue(), False,
    )  # fmt: skip


def inputs(T, D):
    """(T, D) that eight bits hold: whole multiples of a power of two, the largest 127 of them in every run of 32."""
    codes = torch.randint(-127, 128, (T, D)).float()
    codes[:, ::32] = 127.0
    scale = 2.0 ** torch.randint(-4, 3, (T, -(-D // 32))).repeat_interleave(32, 1)[:, :D]
    return codes * scale


def turned_inputs(T, D):
    """(T, D) that eight bits hold once they are turned: whole numbers, the largest 127 of them in every token; of
    a last run that is not whole, one input."""
    whole, rest = D // 64 * 64, D % 64
    codes = torch.randint(-127, 128, (T, whole)).float()
    codes[:, ::577] = 127.0
    x = torch.zeros(T, D)
    x[:, :whole] = turned(codes)
    if rest:
        x[torch.arange(T), whole + torch.randint(rest, (T,))] = 64 * (127.0 if whole == 0 else 5.0)
    return x * 2.0 ** torch.randint(-4, 3, (T, 1))


LEVELS = (-128, -101, -83, -65, -49, -35, -22, -10, 0, 1, 13, 25, 38, 69, 113, 127)
FORMATS = [Packing(*layout, levels=LEVELS if has_levels else None) for *layout, has_levels in LAYOUTS]
SHAPES = [(1, 1), (3, 32), (17, 64), (33, 576), (100, 1536), (5, 33), (16, 7), (40, 65), (300, 200)]


def random_packed(rows, width, packing):
    codes = torch.randint(0, 2**packing.bits, (rows, width), dtype=torch.uint8)
    groups = -(-width // packing.group)
    scale = packing.rounded(torch.rand(rows, groups) * 0.01)
    minimum = packing.rounded(-torch.rand(rows, groups) * 0.05) if packing.has_minimum else None
    matrix = PackedMatrix(rows, width, packing)
    matrix.put(0, codes, scale, minimum)
    return matrix, codes, scale, minimum


def random_hadamard(rows, width):
    matrix = HadamardMatrix(rows, width)
    matrix.put(0, torch.randn(rows, width) * torch.logspace(-1, 1, rows)[:, None])
    return matrix


def random_compressed(rows, width):
    """Some of its numbers are outliers."""
    weight = torch.randn(rows, width)
    weight[torch.rand(rows, width) < 0.01] *= 2.0**-30
    return CompressedMatrix.of(weight.bfloat16())


def run_in_place(x, op):
    plan = native.Plan([x.shape[1]])
    plan.add(op)
    plan.run_head(2, len(x), x.data_ptr(), False, 0)


def heads_spec(sizes, cache, *, rope=None, neighbours=False, norm=None, l2=False, scale=1.0, warmth=(0, 0.0)):
    eight_bit = cache.dtype == torch.uint8
    at = 0 if norm is None else norm.data_ptr()
    cos, sin = (-1, -1) if rope is None else (1, 2)
    return native.HeadsSpec(
        buffer=native.X, cos=cos, sin=sin, sizes=sizes, rope_dim=rope or 0, neighbours=neighbours, norm=at, l2=l2,
        eps=1e-6, scale=scale, temperature_floor=warmth[0], temperature_scale=warmth[1], pool=0,
        cache=cache.data_ptr(), block_size=cache.shape[2], block_bytes=cache[0].nbytes, eight_bit=eight_bit,
    )  # fmt: skip


class Texts:
    """Sequences in blocks that lie anywhere: (start, count) of each part."""

    def __init__(self, parts, K, E, size=8, eight_bit=False):
        self.parts, self.size = parts, size
        longest = max(start + count for start, count in parts)
        width = -(-longest // size)
        self.tables = torch.randperm(len(parts) * width).int().view(len(parts), width)
        length, dtype = row_shape(E, torch.bfloat16, eight_bit=eight_bit)
        self.cache = torch.zeros(len(parts) * width, 2 * K, size, length, dtype=dtype)
        if not eight_bit:
            self.cache.normal_()
        else:
            self.cache[..., :-2] = torch.randint(0, 256, self.cache[..., :-2].shape).to(torch.uint8)
            self.cache[..., -2:] = (torch.rand(*self.cache.shape[:-1], 1) * 0.03).bfloat16().view(torch.uint8)
        self.positions = np.concatenate([np.arange(s, s + c) for s, c in parts])

    def run(self, ops, x, out, view=("full", 0), bias=None, inverse=None, deterministic=False):
        half = 0 if inverse is None else len(inverse)
        plan = native.Plan([x.shape[1], half, half])
        plan.add_pool(*view)
        for op in ops:
            plan.add(op)
        one = torch.ones(1)
        ropes = [] if inverse is None else [(inverse.data_ptr(), one.data_ptr(), 0)]
        parts = [(s, c, c, [table.tolist()]) for (s, c), table in zip(self.parts, self.tables, strict=True)]
        where = (0, 0) if bias is None else (bias.data_ptr(), bias.stride(0))
        plan.run(2, len(x), x.data_ptr(), ropes, parts, self.size, deterministic, *where, out=out.data_ptr())
