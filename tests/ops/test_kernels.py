"""The compiled kernels against their references, at every instruction level that this machine has.

Tolerances: the kernels sum in float32 in another order and round to bfloat16 once, so a result may be off by
one bfloat16 step (2^-8 of its size) where it lies near a boundary, and by the order of summation.
"""

import os
import subprocess
import sys

import pytest
import torch

from paragone import kernels
from paragone.ops import implementation
from paragone.ops import linear as ops
from paragone.ops.activation import gated, gated_reference
from paragone.ops.attention import attention, attention_reference, visible
from paragone.ops.norm import head_norm_, rms_norm, rms_norm_reference
from paragone.ops.paged import (
    dequantize_rows,
    paged_attention,
    quantize_rows,
    read_slots,
    row_shape,
    write_slots,
)
from paragone.ops.rope import rotate_, rotate_reference
from paragone.quant.rtn import quantize_int4, quantize_int8

STEP = 2**-8
pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    torch.manual_seed(7)
    with torch.inference_mode():
        yield


def close(got, want, size=None):
    want = want.float()
    scale = want.abs() + (size if size is not None else 1e-3)
    worst = ((got.float() - want).abs() / scale).max()
    assert worst <= 1.01 * STEP, f"off by {worst / STEP:.2f} steps"


def test_the_kernels_are_built_here():
    assert kernels.native is not None


@pytest.mark.parametrize("level", ["base", "avx2", "avx512", "avx512_bf16"])
def test_every_level_passes(level):
    """This file again, in a process that is held to a lower level."""
    if os.environ.get("PARAGONE_KERNELS"):
        return
    found = subprocess.run(
        [sys.executable, "-c", "import torch; from paragone.kernels import native; print(native.level)"],
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


SHAPES = [
    (1, 16),
    (3, 32),
    (8, 64),
    (17, 96),
    (33, 576),
    (100, 1536),
    (129, 2048),
    (5, 33),
    (16, 7),
    (40, 65),
]


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 8, 13])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_bfloat16_products(shape, tokens, bias):
    weight, x = torch.randn(shape).bfloat16(), torch.randn(tokens, shape[1]).bfloat16()
    bias_N = torch.randn(shape[0]).bfloat16() if bias else None
    cut = shape[0] // 3  # in two parts, as q, k and v lie apart in files
    parts = [weight[:cut].clone(), weight[cut:].clone()] if cut else [weight]
    matrix = ops.kernel_matrix("bf16", [(p, None) for p in parts], shape[1], bias_N)
    want = x.double() @ weight.double().T + (0 if bias_N is None else bias_N.double())
    close(matrix.multiply(x), want, 1e-4 * shape[1] ** 0.5)
    if not bias:
        torch.testing.assert_close(matrix.multiply_unrounded(x).double(), want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_products(shape, tokens):
    codes, scale = quantize_int8(torch.randn(shape))
    x = torch.randn(tokens, shape[1]).bfloat16()
    matrix = ops.kernel_matrix("int8", [(codes, scale)], shape[1], None)
    close(matrix.multiply(x), ops.int8_linear_reference(x, codes, scale), 1e-4 * shape[1] ** 0.5)


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 70])
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[1] % 32 == 0], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_int4_products(shape, tokens, bias):
    codes, pairs = quantize_int4(torch.randn(shape))
    x = torch.randn(tokens, shape[1]).bfloat16()
    bias_N = torch.randn(shape[0]).bfloat16() if bias else None
    matrix = ops.kernel_matrix("int4", [(codes, pairs)], shape[1], bias_N)
    want = x.float() @ ops.int4_dequantize(ops.int4_split(codes), pairs).T
    want = want if bias_N is None else want + bias_N.float()
    if matrix.takes(x):
        close(matrix.multiply(x), want, 3e-4 * shape[1] ** 0.5)
    else:
        # the widened weight is rounded to bfloat16 as well
        assert (matrix.multiply_widened(x) - want).norm() <= STEP * want.norm()


def test_codes_survive_joining():
    codes = torch.randint(0, 16, (7, 96), dtype=torch.uint8)
    assert torch.equal(ops.int4_split(ops.int4_join(codes)), codes)


@pytest.mark.parametrize("width", [1, 15, 16, 64, 576, 2304])
@pytest.mark.parametrize("weight_type", [torch.float32, torch.bfloat16])
def test_norm(width, weight_type):
    x, weight = (3 * torch.randn(2, 3, width)).bfloat16(), torch.randn(width).to(weight_type)
    # Llama's order rounds twice: each rounding may fall to the other side
    assert_steps(rms_norm(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5), 2)


@pytest.mark.parametrize("heads", [(9, 3, 64), (4, 1, 256), (2, 2, 6)], ids=str)
def test_head_norm_and_rotation_in_place(heads):
    H, K, E = heads
    joined = torch.randn(2, 5, H + 2 * K, E).bfloat16()
    weight = torch.randn(H + K, E)
    before = joined.clone()
    qk = joined[:, :, : H + K]
    head_norm_(qk, weight, 1e-6)
    assert_steps(qk, rms_norm_reference(before[:, :, : H + K], weight, 1e-6), 1)
    for batch in (1, 2):
        angles = torch.randn(batch, 5, 1, E // 2)
        cos = torch.cat((angles.cos(), angles.cos()), -1).bfloat16()
        sin = torch.cat((-angles.sin(), angles.sin()), -1).bfloat16()
        unsigned = torch.cat((-sin[..., : E // 2], sin[..., E // 2 :]), -1)
        want = rotate_reference(qk.clone(), cos, unsigned)
        rotate_(qk, cos, sin)
        assert (qk.float() - want.float()).abs().max() <= 3 * STEP * want.float().abs().max()
    assert torch.equal(joined[:, :, H + K :], before[:, :, H + K :]), "values are neither normed nor turned"


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("width", [1, 16, 33, 1536])
def test_gated(activation, width):
    gate_up = (8 * torch.randn(3, 2 * width)).bfloat16()
    gate_up[0, 0], gate_up[1, 0], gate_up[2, 0] = -100.0, 100.0, 0.0  # beyond what e^x can hold
    # in double: in float32, 1 + tanh loses what is left of it for large negative gates
    close(gated(gate_up, activation), gated_reference(gate_up.double(), activation), 1e-6)


@pytest.mark.parametrize("heads", [(9, 3, 64), (4, 1, 256), (6, 6, 10), (8, 2, 16)], ids=str)
@pytest.mark.parametrize("slots", [1, 2, 63, 256, 257, 700])
def test_decode_attention(heads, slots):
    H, K, E = heads
    cache = torch.randn(2, 2 * K, slots + 11, E).bfloat16()
    k, v = cache[:, :K, 4 : 4 + slots], cache[:, K:, 4 : 4 + slots]
    q = (3 * torch.randn(2, 1, H + 2 * K, E)).bfloat16()[:, :, :H]
    seen = visible(1, slots, None, q.device)
    want = attention_reference(q.double(), k.double(), v.double(), E**-0.5, seen)
    got = attention(q, k, v, E**-0.5)
    assert (got.double() - want).abs().max() <= 1.01 * STEP * want.abs().max() + 1e-5


@pytest.mark.parametrize("extra", ["plain", "softcap", "bias"])
@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("heads", [(9, 3, 64), (4, 1, 256), (6, 6, 10), (8, 2, 80), (14, 2, 16)], ids=str)
def test_paged_attention(heads, eight_bit, extra):
    """Sequences of several lengths and windows, in blocks that lie anywhere, against float64."""
    H, K, E = heads
    lasts = [1, 2, 5, 37, 256, 257, 600]
    firsts = [0, 0, 3, 0, 17, 0, 555]
    size, count = 8, len(lasts)
    width = -(-max(lasts) // size)
    tables = torch.randperm(count * width).int().view(count, width)
    kv = torch.randn(count, width * size, 2 * K, E).bfloat16()
    length, dtype = row_shape(E, torch.bfloat16, eight_bit=eight_bit)
    cache = torch.empty(count * width, 2 * K, size, length, dtype=dtype)
    for table, rows, last in zip(tables, kv, lasts, strict=True):
        slots = table[torch.arange(last) // size].long() * size + torch.arange(last) % size
        write_slots(cache, slots, rows[:last])
        kept = read_slots(cache, table.long(), 0, last, torch.bfloat16)[0].transpose(0, 1)
        if eight_bit:
            assert torch.equal(kept, dequantize_rows(quantize_rows(rows[:last]), torch.bfloat16))
        else:
            assert torch.equal(kept, rows[:last])
    q = (3 * torch.randn(count, H + 2 * K, E)).bfloat16()[:, :H]
    softcap = 5.0 if extra == "softcap" else None
    bias = torch.randn(H, max(lasts)) if extra == "bias" else None
    seen = tables, torch.tensor(firsts).int(), torch.tensor(lasts).int()
    got = paged_attention(q, cache, *seen, E**-0.5, softcap, bias)
    for n, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
        slots = read_slots(cache, tables[n].long(), first, last, torch.float64).double()
        allowed = visible(1, last - first, None, q.device)
        mine = None if bias is None else bias[None, :, first:last].double()
        k, v = slots.chunk(2, dim=1)
        want = attention_reference(q[n : n + 1, None].double(), k, v, E**-0.5, allowed, softcap, mine)[0, 0]
        assert (got[n].double() - want).abs().max() <= 1.01 * STEP * want.abs().max() + 1e-5


def test_many_queries_over_many_slots():
    """More than there is room for at a time: in turns, and each as if it were alone."""
    H, E, slots, count = 4, 64, 2300, 2000
    cache = torch.randn(-(-slots // 16), 2, 16, E).bfloat16()
    q = torch.randn(count, H, E).bfloat16()
    table = torch.arange(len(cache), dtype=torch.int32)
    first, last = torch.zeros(count, dtype=torch.int32), torch.randint(1, slots, (count,), dtype=torch.int32)
    together = paged_attention(q, cache, table.expand(count, -1).contiguous(), first, last, 0.1)
    for n in (0, 1, 999, 1000, 1024, 1999):
        one = slice(n, n + 1)
        alone = paged_attention(q[one], cache, table[None].contiguous(), first[one], last[one], 0.1)
        assert torch.equal(together[one], alone)


def test_eight_bit_rows_hold_what_they_can():
    x = torch.randn(50, 3, 64) * torch.logspace(-8, 8, 50)[:, None, None]
    x[0] = 0.0
    for rows in (x, x.bfloat16()):
        back = dequantize_rows(quantize_rows(rows), torch.float32)
        worst = (back - rows.float()).abs().amax(-1) / rows.float().abs().amax(-1).clamp_min(1e-30)
        assert worst.max() <= 0.5 / 127 * 1.01 + 2**-8
        assert torch.equal(back[0], torch.zeros(3, 64))


@pytest.mark.parametrize("form", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("shape", [(5, 32), (100, 96), (33, 576)], ids=str)
def test_products_do_not_depend_on_neighbours(form, shape):
    """What the deterministic mode stands on: a row's result is the same to the bit among any others."""
    N, D = shape
    weight = torch.randn(N, D)
    part = {"bf16": lambda w: (w.bfloat16(), None), "int8": quantize_int8, "int4": quantize_int4}[form](
        weight
    )
    matrix = ops.kernel_matrix(form, [part], D, None)
    x = torch.randn(70, D).bfloat16()
    whole = matrix.multiply_unrounded(x)
    for first, last in ((0, 1), (3, 5), (7, 11), (20, 37), (1, 70)):
        assert torch.equal(matrix.multiply_unrounded(x[first:last]), whole[first:last])


def test_what_is_not_a_number_stays_so():
    x = torch.full((1, 64), float("nan")).bfloat16()
    weight = torch.randn(8, 64).bfloat16()
    matrix = ops.kernel_matrix("bf16", [(weight, None)], 64, None)
    assert matrix.multiply(x).isnan().all()
    assert rms_norm(x, torch.ones(64), 1e-5).isnan().all()
    assert gated(x, "silu").isnan().all()


def test_gradients_and_other_types_are_left_to_torch():
    weight = torch.randn(8, 64)
    assert ops.kernel_matrix("bf16", [(weight, None)], 64, None) is None
    matrix = ops.kernel_matrix("bf16", [(weight.bfloat16(), None)], 64, None)
    x = torch.randn(1, 64).bfloat16()
    assert matrix.takes(x)
    assert not matrix.takes(x.float())
    with implementation("torch"):
        assert not matrix.takes(x)
    with torch.inference_mode(False), torch.enable_grad():
        assert not matrix.takes(torch.randn(1, 64).bfloat16())


def assert_steps(got, want, steps):
    difference = (got.float() - want.float()).abs()
    assert (difference <= 1.01 * steps * STEP * (want.float().abs() + 1e-4)).all()
