"""The compiled kernels against their references, at every instruction level that this machine has.

Each operation runs as a plan of its own. Tolerances: packed products are exact but for the order of summation, for
the inputs are chosen so that eight bits hold them; products with bfloat16 round their inputs where the level
multiplies pairs (2^-9 of their size), else nothing.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from paragone import kernels
from paragone.model.linear import Linear
from paragone.model.mlp import MLP, MoE
from paragone.model.spec import MoESpec
from paragone.ops.activation import activate
from paragone.ops.attention import attention_reference, visible
from paragone.ops.norm import l2_norm, rms_norm_reference
from paragone.ops.packed import PackedMatrix, Packing
from paragone.ops.paged import dequantize_rows, quantize_rows, read_slots, row_shape
from paragone.quant.rtn import INT4, INT8, quantize_int4, quantize_int8

native = kernels.native
LEVELS = "base", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx_in_software", "amx"
PAIRS = native is not None and native.pairs
STEP = 2**-8 if PAIRS else 2e-6  # of an input of a product with bfloat16
pytestmark = pytest.mark.usefixtures("seeded")


@pytest.fixture
def seeded():
    torch.manual_seed(7)
    with torch.inference_mode():
        yield


def test_the_kernels_are_built_here():
    assert native is not None


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_passes(level):
    """This file again, in a process that is held to a lower level."""
    if os.environ.get("PARAGONE_KERNELS"):
        return
    found = subprocess.run(
        [sys.executable, "-c", "from paragone.kernels import native; print(native.level)"],
        env=os.environ | {"PARAGONE_KERNELS": level}, capture_output=True, text=True,
    )  # fmt: skip
    if found.stdout.strip() != level:
        assert level != "base"  # the machine does not have this level, and said so by taking its best
        return
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env=os.environ | {"PARAGONE_KERNELS": level}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:]


def run(x, op, width, deterministic=False):
    """One operation from rows x (T, D) to (T, width)."""
    plan, y = native.Plan([x.shape[1]]), torch.full((len(x), width), 77.0)
    plan.add(op)
    best = torch.zeros(len(x), dtype=torch.int64)
    plan.run_head(2, len(x), x.data_ptr(), deterministic, y.data_ptr(), best.data_ptr())
    return y


def linear(parts, bias=None, prologue=None, source_width=None):
    """A product from the plan's input to its output. Parts must stay alive."""

    def seen(part):
        if isinstance(part, torch.Tensor):
            return native.dense(part.data_ptr(), len(part))
        p = part.packing
        return native.packed(
            part.panels.data_ptr(), part.rows, part.width, p.bits, p.has_minimum, p.fine, p.unit
        )

    width = parts[0].width if isinstance(parts[0], PackedMatrix) else parts[0].shape[1]
    at = 0 if bias is None else bias.data_ptr()
    return native.Linear(
        native.X, source_width or width, native.OUT, width, [seen(part) for part in parts], at,
        prologue or native.Prologue(), False,
    )  # fmt: skip


def inputs(T, D):
    """(T, D) that eight bits hold: whole multiples of a power of two, the largest 127 of them in every run of 32."""
    codes = torch.randint(-127, 128, (T, D)).float()
    codes[:, ::32] = 127.0
    scale = 2.0 ** torch.randint(-4, 3, (T, -(-D // 32))).repeat_interleave(32, 1)[:, :D]
    return codes * scale


FORMATS = [
    Packing(bits, minimum, fine) for bits in (4, 8) for minimum in (False, True) for fine in (False, True)
]
SHAPES = [(1, 1), (3, 32), (17, 64), (33, 576), (100, 1536), (5, 33), (16, 7), (40, 65), (300, 200)]


def random_packed(rows, width, packing):
    codes = torch.randint(0, 2**packing.bits, (rows, width), dtype=torch.uint8)
    groups = -(-width // packing.group)
    scale = packing.rounded(torch.rand(rows, groups) * 0.01)
    minimum = packing.rounded(-torch.rand(rows, groups) * 0.05) if packing.has_minimum else None
    matrix = PackedMatrix(rows, width, packing)
    matrix.put(0, codes, scale, minimum)
    return matrix, codes, scale, minimum


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("packing", FORMATS, ids=str)
def test_packing_keeps_every_integer(packing, shape):
    rows, width = shape
    matrix, codes, scale, minimum = random_packed(rows, width, packing)
    other = PackedMatrix(rows, width, packing)
    for at in range(0, rows, 5):  # in pieces, and without the kernels
        part = slice(at, at + 5)
        other._put(at, codes[part], scale[part], None if minimum is None else minimum[part])
    assert torch.equal(matrix.panels, other.panels)

    def spread(values):
        return values.repeat_interleave(packing.group, 1)[:, :width]

    want = (codes.float() - packing.center) * spread(scale)
    want = want if minimum is None else want + spread(minimum)
    assert torch.equal(matrix.dequantize(), want)
    assert torch.equal(matrix.dequantize(rows // 2, rows), want[rows // 2 :])
    ids = [rows - 1, 0, rows // 2]
    torch.testing.assert_close(matrix.rows_of(ids), want[ids], rtol=1e-6, atol=0)
    for wrong in (-1, rows):
        with pytest.raises(IndexError):
            matrix.rows_of([0, wrong])


@pytest.mark.parametrize(
    "quantize", [(quantize_int8, INT8, 0.006), (quantize_int4, INT4, 0.08)], ids=("int8", "int4")
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rounding_to_nearest(quantize, shape):
    function, packing, most = quantize
    weight = torch.randn(shape) * torch.logspace(-4, 2, shape[0])[:, None]
    matrix = PackedMatrix(*shape, packing)
    matrix.put(0, *function(weight))
    off = (matrix.dequantize() - weight).abs().amax(1) / weight.abs().amax(1)
    assert off.max() <= most


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7, 9, 40])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("packing", FORMATS, ids=str)
def test_packed_products(packing, shape, tokens):
    matrix = random_packed(*shape, packing)[0]
    x, bias = inputs(tokens, shape[1]), torch.randn(shape[0])
    want = x.double() @ matrix.dequantize().double().T + bias.double()
    size = x.double().abs() @ matrix.dequantize().double().abs().T + bias.abs()
    got = run(x, linear([matrix], bias), shape[0])
    assert ((got - want).abs() <= 2e-6 * size).all()


def test_inputs_in_eight_bits():
    """What rounding costs: half a code of the largest of 32."""
    x, eye = torch.randn(50, 96) * torch.logspace(-6, 6, 50)[:, None], PackedMatrix(96, 96, Packing(8))
    eye.put(0, (torch.eye(96) + 128).to(torch.uint8), torch.ones(96, 3), None)
    groups = x.unflatten(1, (3, 32))
    most = groups.abs().amax(2, keepdim=True) / 127 * 0.5001
    assert ((run(x, linear([eye]), 96).unflatten(1, (3, 32)) - groups).abs() <= most).all()


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 8, 13, 17, 40])
@pytest.mark.parametrize("shape", [*SHAPES, (129, 2048), (48, 4200)], ids=str)
def test_bfloat16_products(shape, tokens):
    weight, x = torch.randn(shape).bfloat16(), torch.randn(tokens, shape[1])
    x = x.bfloat16().float() if PAIRS else x
    cut = shape[0] // 3  # in two parts, as q, k and v lie apart in files
    parts = [weight[:cut].clone(), weight[cut:].clone()] if cut else [weight]
    bias = torch.randn(shape[0])
    want = x.double() @ weight.double().T + bias.double()
    size = x.double().abs() @ weight.double().abs().T + bias.abs()
    for deterministic in (False, True):
        assert ((run(x, linear(parts, bias), shape[0], deterministic) - want).abs() <= 2e-6 * size).all()


def test_parts_of_several_kinds():
    x, dense = inputs(9, 64), torch.randn(20, 64).bfloat16()
    parts = [random_packed(17, 64, FORMATS[0])[0], dense, random_packed(40, 64, FORMATS[7])[0]]
    whole = torch.cat([parts[0].dequantize(), dense.float(), parts[2].dequantize()])
    want = x.double() @ whole.double().T
    assert (run(x, linear(parts), 77) - want).abs().max() <= 1e-4 * want.abs().max()


@pytest.mark.parametrize("kind", ["bf16", *FORMATS], ids=str)
@pytest.mark.parametrize("shape", [(5, 32), (100, 96), (33, 576)], ids=str)
def test_products_do_not_depend_on_neighbours(kind, shape):
    """What the deterministic mode stands on: a row's result is the same to the bit among any others."""
    part = torch.randn(shape).bfloat16() if kind == "bf16" else random_packed(*shape, kind)[0]
    x = torch.randn(70, shape[1])
    whole = run(x, linear([part]), shape[0], deterministic=True)
    for first, last in ((0, 1), (3, 5), (7, 11), (20, 37), (1, 70)):
        alone = run(x[first:last].clone(), linear([part]), shape[0], deterministic=True)
        assert torch.equal(alone, whole[first:last])


@pytest.mark.parametrize("width", [1, 15, 16, 64, 576, 2304])
def test_norms(width):
    x, weight, bias = 3 * torch.randn(5, width) + 1, torch.randn(width), torch.randn(width)
    rms = native.norm("rms", weight.data_ptr(), 0, 1e-5, width)
    got = x.clone()
    run_in_place(got, native.Norm(native.X, native.X, width, rms, False))
    torch.testing.assert_close(got, rms_norm_reference(x, weight, 1e-5), rtol=1e-5, atol=1e-5)
    added = x.clone()
    run_in_place(added, native.Norm(native.X, native.X, width, rms, True))
    torch.testing.assert_close(added, x + rms_norm_reference(x, weight, 1e-5), rtol=1e-5, atol=1e-5)
    layer = native.norm("layer", weight.data_ptr(), bias.data_ptr(), 1e-5, width)
    got = x.clone()
    run_in_place(got, native.Norm(native.X, native.X, width, layer, False))
    torch.testing.assert_close(got, F.layer_norm(x, (width,), weight, bias, 1e-5), rtol=1e-4, atol=1e-4)


def run_in_place(x, op):
    plan = native.Plan([x.shape[1]])
    plan.add(op)
    plan.run_head(2, len(x), x.data_ptr(), False, 0, 0)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("width", [1, 16, 33, 512])
def test_activations(activation, gated, width):
    """Before a product with the unit matrix, in bfloat16."""
    x = 8 * torch.randn(3, width * (1 + gated))
    x[0, 0], x[1, 0], x[2, 0] = -100.0, 100.0, 0.0  # beyond what e^x can hold
    eye = torch.eye(width).bfloat16()
    got = run(x, linear([eye], None, native.activated(activation, gated), x.shape[1]), width)
    # In double: in float32, 1 + tanh loses what is left of it for large negative gates.
    want = activate(x[:, :width].double(), activation) * (x[:, width:].double() if gated else 1.0)
    assert ((got - want).abs() <= max(STEP, 4e-6) * want.abs() + 1e-6).all()


def heads_spec(sizes, cache, *, rope=None, neighbours=False, norm=None, l2=False, scale=1.0, warmth=(0, 0.0)):
    eight_bit = cache.dtype == torch.uint8
    at = 0 if norm is None else norm.data_ptr()
    cos, sin = (-1, -1) if rope is None else (1, 2)
    return native.HeadsSpec(
        buffer=native.X, cos=cos, sin=sin, sizes=sizes, rope_dim=rope or 0, neighbours=neighbours, norm=at, l2=l2,
        eps=1e-6, scale=scale, temperature_floor=warmth[0], temperature_scale=warmth[1], pool=0,
        cache=cache.data_ptr(), block_size=cache.shape[2], eight_bit=eight_bit,
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
        parts = [(s, c, [table.tolist()]) for (s, c), table in zip(self.parts, self.tables, strict=True)]
        where = (0, 0) if bias is None else (bias.data_ptr(), bias.stride(0))
        plan.run(2, len(x), x.data_ptr(), ropes, parts, self.size, deterministic, *where, out=out.data_ptr())


HEADS = [(9, 3, 64), (4, 1, 256), (6, 6, 10), (8, 2, 80), (14, 2, 16)]
PARTS = [(0, 1), (4, 2), (36, 1), (0, 40), (255, 1), (256, 70), (599, 1), (100, 130)]


@pytest.mark.parametrize("view", [("full", 0), ("sliding", 20), ("chunked", 48)], ids=str)
@pytest.mark.parametrize("extra", ["plain", "softcap", "bias"])
@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_attention(heads, eight_bit, extra, view):
    """Single tokens, several, and long parts, over blocks that lie anywhere, against float64."""
    H, K, E = heads
    texts = Texts(PARTS, K, E, eight_bit=eight_bit)
    x = 3 * torch.randn(len(texts.positions), (H + 2 * K) * E)
    softcap = 5.0 if extra == "softcap" else 0.0
    bias = torch.randn(H, 700) if extra == "bias" else None
    spec = heads_spec(heads, texts.cache, scale=E**-0.5)
    cap = softcap or None
    q = x.view(len(x), H + 2 * K, E)[:, :H].double().clone()
    out = torch.empty(len(x), H * E)
    texts.run([native.Heads(spec), native.Attend(spec, native.OUT, softcap)], x, out, view, bias)
    row = 0
    for (start, count), table in zip(PARTS, texts.tables, strict=True):
        end = start + count
        k, v = read_slots(texts.cache, table.long(), 0, end, torch.float64).double().chunk(2, dim=1)
        at = torch.arange(start, end)[:, None]
        allowed = visible(count, end, view[1] if view[0] == "sliding" else None, x.device)
        if view[0] == "chunked":
            allowed &= torch.arange(end)[None] // view[1] == at // view[1]
        mine = None if bias is None else bias[None, :, :end].double()
        want = attention_reference(q[None, row : row + count], k, v, E**-0.5, allowed, cap, mine)[0]
        got = out[row : row + count].view(count, H, E)
        # In tiles, numbers of eight bits are rounded to bfloat16, and queries where pairs are multiplied: scores
        # of this size are off by a few steps.
        most = 4e-2 if count > 8 and (PAIRS or eight_bit) else 1e-4
        assert (got - want).abs().max() <= most * want.abs().max(), (start, count)
        row += count


@pytest.mark.parametrize("deterministic", [False, True])
def test_attention_does_not_depend_on_neighbours(deterministic):
    """Parts of more than eight tokens cut elsewhere, and with others beside them: the same to the bit."""
    H, K, E = 6, 2, 64
    texts = Texts([(90, 120), (0, 30)], K, E)
    spec = heads_spec((H, K, E), texts.cache)
    x = torch.randn(150, (H + 2 * K) * E)
    whole, cut = torch.empty(150, H * E), torch.empty(120, H * E)
    ops = [native.Heads(spec), native.Attend(spec, native.OUT, 0.0)]
    texts.run(ops, x.clone(), whole, ("sliding", 70), deterministic=deterministic)
    other = Texts([(90, 50), (140, 70)], K, E)
    other.cache, other.tables = texts.cache, texts.tables[[0, 0]].contiguous()
    other.run(ops, x[:120].clone(), cut, ("sliding", 70), deterministic=deterministic)
    assert torch.equal(cut, whole[:120])


@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize("norm", ["none", "weighted", "l2"])
@pytest.mark.parametrize("heads", [(9, 3, 64, 64), (4, 1, 256, 64), (2, 2, 6, 6), (3, 1, 80, 20)], ids=str)
def test_heads(heads, norm, neighbours):
    """Norms, rotation, temperature, and what is written into the cache, in both widths."""
    H, K, E, dim = heads
    parts = [(5, 1), (0, 20), (77, 3)]
    for eight_bit in (False, True):
        texts = Texts(parts, K, E, eight_bit=eight_bit)
        x = torch.randn(24, (H + 2 * K) * E)
        weight = torch.randn(H + K, E) if norm == "weighted" else None
        inverse = 1.0 / 100.0 ** (torch.arange(0, dim, 2) / dim)
        spec = heads_spec(
            (H, K, E), texts.cache, rope=dim, neighbours=neighbours, norm=weight, l2=norm == "l2", scale=0.3,
            warmth=(8, 0.1),
        )  # fmt: skip
        want = x.view(24, H + 2 * K, E).double()
        qk = want[:, : H + K]
        if weight is not None:
            qk = rms_norm_reference(qk, weight, 1e-6).double()
        angles = torch.from_numpy(texts.positions).double()[:, None, None] * inverse.double()
        turned, rest = qk[..., :dim], qk[..., dim:]
        a, b = turned.unflatten(-1, (-1, 2)).unbind(-1) if neighbours else turned.chunk(2, -1)
        both = a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()
        turned = torch.stack(both, -1).flatten(-2) if neighbours else torch.cat(both, -1)
        qk = torch.cat((turned, rest), -1)
        if norm == "l2":
            qk = l2_norm(qk, 1e-6).double()
        floors = torch.floor((torch.from_numpy(texts.positions).double() + 1) / 8)
        q = qk[:, :H] * (torch.log1p(floors) * 0.1 + 1)[:, None, None] * 0.3
        texts.run([native.Angles(0, 1, 2, dim), native.Heads(spec)], x, x, inverse=inverse)
        got = x.view(24, H + 2 * K, E)
        torch.testing.assert_close(got[:, :H].double(), q, rtol=1e-4, atol=1e-4)
        kv, row = torch.cat((qk[:, H:], want[:, H + K :]), 1), 0
        for (start, count), table in zip(parts, texts.tables, strict=True):
            kept = read_slots(texts.cache, table.long(), start, start + count, torch.float32)[0].transpose(
                0, 1
            )
            mine = kv[row : row + count]
            most = (
                mine.abs().amax(-1, keepdim=True) * (0.5 / 127 + 2**-9) if eight_bit else mine.abs() * 2**-8
            )
            assert ((kept - mine).abs() <= most * 1.01 + 1e-4).all()
            row += count


@pytest.mark.parametrize("tokens", [1, 3, 30])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_mixtures(tokens, score, renormalise, shared):
    D, inner, count = 32, 48, 6

    def matrix(rows, width):
        return Linear([torch.randn(rows, width).bfloat16() * width**-0.5])

    def mlp(width=inner):
        return MLP("silu", matrix(2 * width, D), matrix(D, width))

    spec = MoESpec(count, 2, inner, score, renormalise and score == "softmax", float32_weights=True)
    moe = MoE(spec, matrix(count, D), [mlp() for _ in range(count)], mlp(16) if shared else None,
              matrix(1, D) if shared else None)  # fmt: skip
    weight, x = torch.rand(D) + 0.5, torch.randn(tokens, D)
    wide = MoE(spec, widened(moe.router), [widened(e) for e in moe.experts], moe.shared and widened(moe.shared),
               moe.shared_gate and widened(moe.shared_gate))  # fmt: skip
    want = x + wide(rms_norm_reference(x, weight, 1e-5))

    def product(of, source, target, prologue=None, source_width=None):
        part = native.dense(of.parts[0].data_ptr(), of.out_features)
        return native.Linear(source, source_width or of.in_features, target, of.in_features, [part], 0,
                             prologue or native.Prologue(), False)  # fmt: skip

    def pair(of):
        act = native.activated("silu", True)
        return product(of.up, 1, 3), product(of.down, 3, 4, act, of.up.out_features)

    op = native.Mixture(
        buffers=(1, 2, 3, 4), D=D, top_k=2, norm=native.norm("rms", weight.data_ptr(), 0, 1e-5, D),
        router=product(moe.router, 1, 2), experts=[pair(e) for e in moe.experts], sigmoid=score == "sigmoid",
        renormalise=spec.renormalise, shared=[pair(moe.shared)] if shared else [],
        shared_gate=[product(moe.shared_gate, 1, 2)] if shared else [],
    )  # fmt: skip
    plan = native.Plan([D, D, count, 2 * inner, D])
    plan.add(op)
    plan.run_head(2, tokens, x.data_ptr(), False, 0, 0)
    # A router's inputs are rounded too: where two experts are as good as each other, another may be chosen.
    close = ((x - want).abs().amax(1) <= (0.05 if PAIRS else 1e-4) * want.abs().max()).float().mean()
    assert close >= (0.9 if PAIRS else 1.0)


def widened(of):
    """A matrix or an MLP in float32."""
    if isinstance(of, MLP):
        return MLP(of.activation, widened(of.up), widened(of.down), is_gated=of.is_gated)
    return Linear([part.float() for part in of.parts])


@pytest.mark.parametrize("width", [1, 7, 16, 100, 49152])
def test_the_largest_logit(width):
    for softcap in (0.0, 20.0):
        x = 30 * torch.randn(5, width)
        x[1, width // 2], x[2] = 1000.0, -5.0
        x[3, width // 3] = float("nan")
        y, best = x.clone(), torch.zeros(5, dtype=torch.int64)
        plan = native.Plan([width])
        plan.add(native.Logits(width, softcap))
        plan.run_head(2, 5, x.data_ptr(), False, y.data_ptr(), best.data_ptr())
        capped = torch.tanh(x / softcap) * softcap if softcap else x
        torch.testing.assert_close(y, capped, rtol=1e-5, atol=1e-5, equal_nan=True)
        assert best[3] == -1
        rows = torch.tensor([0, 1, 2, 4])
        assert torch.equal(y[rows, best[rows]], y[rows].amax(1))
        assert best[2] == 0  # of equal ones the first


@pytest.mark.parametrize("strange", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_so(strange):
    x = torch.randn(1, 64)
    x[0, 40] = strange
    for part in (torch.randn(8, 64).bfloat16(), *(random_packed(8, 64, packing)[0] for packing in FORMATS)):
        assert not run(x, linear([part]), 8).isfinite().any()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 70), st.integers(1, 200), st.integers(1, 35), st.sampled_from([None, *FORMATS]))
def test_any_shape(rows, width, tokens, packing):
    part = torch.randn(rows, width).bfloat16() if packing is None else random_packed(rows, width, packing)[0]
    whole = part.float() if packing is None else part.dequantize()
    x = inputs(tokens, width)
    want = x.double() @ whole.double().T
    size = x.double().abs() @ whole.double().abs().T + 1e-9
    assert ((run(x, linear([part]), rows) - want).abs() <= 2e-6 * size).all()


def test_eight_bit_rows_hold_what_they_can():
    x = torch.randn(50, 3, 64) * torch.logspace(-8, 8, 50)[:, None, None]
    x[0] = 0.0
    for rows in (x, x.bfloat16()):
        back = dequantize_rows(quantize_rows(rows), torch.float32)
        worst = (back - rows.float()).abs().amax(-1) / rows.float().abs().amax(-1).clamp_min(1e-30)
        assert worst.max() <= 0.5 / 127 * 1.01 + 2**-8
        assert torch.equal(back[0], torch.zeros(3, 64))
