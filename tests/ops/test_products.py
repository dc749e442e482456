"""Products with packed weights and with bfloat16, against their references.

Tolerances: packed products are exact but for the order of summation, for the inputs are chosen so that eight bits
hold them, and words; products with bfloat16 round their inputs where the level multiplies pairs (2^-9 of their size),
else nothing.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paragone.checkpoint.gguf_types import TYPES
from paragone.ops.compressed import CompressedMatrix
from paragone.ops.packed import PackedMatrix, Packing
from paragone.quant.rtn import INT4, put_rounded, quantize_int4
from tests.ops.plans import (
    FORMATS,
    PAIRS,
    SHAPES,
    as_multiplied,
    in_words,
    inputs,
    linear,
    native,
    random_compressed,
    random_hadamard,
    random_packed,
    run,
    run_in_place,
    seen,
)


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

    want = packing.integers(codes) * spread(scale)
    want = want if minimum is None else want + spread(minimum)
    assert torch.equal(matrix.dequantize(), want)
    assert torch.equal(matrix.dequantize(rows // 2, rows), want[rows // 2 :])
    ids = [rows - 1, 0, rows // 2]
    torch.testing.assert_close(matrix.rows_of(ids), want[ids], rtol=1e-6, atol=0)
    for wrong in (-1, rows):
        with pytest.raises(IndexError):
            matrix.rows_of([0, wrong])


@pytest.mark.parametrize("kind", [t for t in TYPES if t.unpack is not None], ids=lambda t: t.name)
def test_rows_of_files_are_repacked_to_the_bit(kind):
    """Rows of every GGUF type, in any order, as the reader takes them apart."""
    rng, rows, blocks = np.random.default_rng(kind.code), 37, 6 if kind.block_size == 32 else 2
    found = rng.integers(0, 256, (40 * rows * blocks, kind.type_size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        parts = kind.unpack(found)
        usual = [
            ((abs(p) > 1e-4) & (abs(p) < 1e4)).any(axis=1) & np.isfinite(p).all(axis=1)
            for p in (parts.scale, parts.minimum)
            if p is not None
        ]
    raw = found[np.logical_and.reduce(usual)][: rows * blocks].reshape(rows, -1)
    order = rng.permutation(rows)
    groups = kind.unpack(raw[order].reshape(-1, kind.type_size))
    fine = groups.q.shape[-1] == 16
    packing = Packing(kind.code_bits, groups.minimum is not None, fine, levels=kind.levels)
    got, want = (PackedMatrix(rows, blocks * kind.block_size, packing) for _ in range(2))
    assert got.repack(0, kind.name, raw.ctypes.data, order[:16], kind.codebook)
    assert got.repack(16, kind.name, raw.ctypes.data, order[16:], kind.codebook)

    def by_row(values, dtype):
        return torch.from_numpy(values.reshape(rows, -1).astype(dtype))

    minimum = None if groups.minimum is None else by_row(groups.minimum, np.float32)
    codes = by_row(packing.codes(groups.q), np.uint8)
    want._put(0, codes, by_row(groups.scale, np.float32), minimum)
    assert torch.equal(got.panels, want.panels)


def test_rows_of_a_matrix_in_another_order():
    matrix = random_packed(20, 64, FORMATS[0])[0]
    matrix.order = torch.randperm(64).int()
    torch.testing.assert_close(matrix.rows_of([3, 17]), matrix.dequantize()[[3, 17]], rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rounding_to_nearest(shape):
    weight = torch.randn(shape) * torch.logspace(-4, 2, shape[0])[:, None]
    matrix = PackedMatrix(*shape, INT4)
    matrix.put(0, *quantize_int4(weight))
    off = (matrix.dequantize() - weight).abs().amax(1) / weight.abs().amax(1)
    assert off.max() <= 0.08


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [0, 1e-30, 1e-6, 1, 1e3, 1e30])
def test_the_kernels_round_as_the_reference_does(size, dtype):
    for shape in [*SHAPES, (1, 1), (3, 31), (17, 33)]:
        weight = (torch.randn(shape) * torch.logspace(-4, 1, shape[0])[:, None] * size).to(dtype)
        if not weight.isfinite().all():
            continue  # more than float16 holds
        want, got = PackedMatrix(*shape, INT4), PackedMatrix(*shape, INT4)
        want.put(0, *quantize_int4(weight))
        put_rounded(got, 0, weight)
        assert torch.equal(got.dequantize(), want.dequantize())


def error(packing, tokens, deterministic=False):
    """Of a packed product, by the sizes of its terms. A weight with a minimum may be rounded once or twice before it
    becomes a word, and then be its neighbour."""
    return 2.0**-8 if packing.has_minimum and in_words(tokens, deterministic) else 2e-6


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7, 9, 24, 33, 40])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("packing", FORMATS, ids=str)
def test_packed_products(packing, shape, tokens):
    matrix = random_packed(*shape, packing)[0]
    x, bias = inputs(tokens, shape[1]), torch.randn(shape[0])
    size = x.double().abs() @ matrix.dequantize().double().abs().T + bias.abs()
    for deterministic in (False, True):
        want = x.double() @ as_multiplied(matrix, tokens, deterministic).T + bias.double()
        got = run(x, linear([matrix], bias), shape[0], deterministic)
        assert ((got - want).abs() <= error(packing, tokens, deterministic) * size).all()


@pytest.mark.parametrize("tokens", [9, 10, 17, 33, 47, 65, 70, 130])
def test_products_are_added_to_what_is_there(tokens):
    """Rows of several tiles, which some tokens are in twice."""
    x = inputs(tokens, 96)
    for packing in FORMATS:
        matrix = random_packed(96, 96, packing)[0]
        got, weight = x.clone(), as_multiplied(matrix, tokens)
        op = native.Linear(
            native.X, native.X, 96, [seen(matrix)], 0, native.Prologue(), native.Epilogue(), True
        )
        run_in_place(got, op)
        size = x.double().abs() @ weight.abs().T + x.abs()
        assert ((got - x - x.double() @ weight.T).abs() <= (error(packing, tokens) + 2e-6) * size).all()


@pytest.mark.parametrize("size", [0, 2.0**-20, 2.0**-12, 1, 2.0**7, 2.0**15])
def test_weights_of_any_size_that_float16_scales_give(size):
    """Panels of larger and of smaller numbers than others of the same matrix among them."""
    x = inputs(40, 128)
    for packing in FORMATS:
        codes = torch.randint(0, 2**packing.bits, (64, 128), dtype=torch.uint8)
        groups = 128 // packing.group
        scale = (
            torch.rand(64, groups) * size * torch.tensor([1, 2**-4, 1.9, 0]).repeat_interleave(16)[:, None]
        )
        scale = packing.rounded(scale)
        matrix = PackedMatrix(64, 128, packing)
        matrix.put(0, codes, scale, packing.rounded(-scale * 3) if packing.has_minimum else None)
        weight = matrix.dequantize().double()
        want, most = x.double() @ weight.T, x.double().abs() @ weight.abs().T
        assert ((run(x, linear([matrix]), 64) - want).abs() <= 2.0**-8 * most + 1e-9 * size).all()


def test_inputs_in_eight_bits_and_in_words():
    """What rounding costs: half a code of the largest of 32; of words, that of bfloat16."""
    x, eye = torch.randn(50, 96) * torch.logspace(-6, 6, 50)[:, None], PackedMatrix(96, 96, Packing(8))
    eye.put(0, (torch.eye(96) + 128).to(torch.uint8), torch.ones(96, 3), None)
    groups = x.unflatten(1, (3, 32))
    most = groups.abs().amax(2, keepdim=True) / 127 * 0.5001
    for deterministic in (False, True):
        bound = groups.abs() * 2.0**-8 if in_words(50, deterministic) else most
        got = run(x, linear([eye]), 96, deterministic).unflatten(1, (3, 32))
        assert ((got - groups).abs() <= bound).all()


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 8, 13, 17, 40])
@pytest.mark.parametrize("shape", [*SHAPES, (129, 2048), (48, 4200)], ids=str)
@pytest.mark.parametrize("outliers", [0.0, 0.01, 0.5])
def test_bfloat16_products(shape, tokens, outliers):
    weight, x = torch.randn(shape).bfloat16(), torch.randn(tokens, shape[1])
    weight[torch.rand(shape) < outliers] *= 2.0**-30
    x = x.bfloat16().float() if PAIRS else x
    cut = shape[0] // 3  # in two parts, as q, k and v lie apart in files
    parts = [CompressedMatrix.of(part) for part in (weight[:cut], weight[cut:]) if len(part)]
    bias = torch.randn(shape[0])
    want = x.double() @ weight.double().T + bias.double()
    size = x.double().abs() @ weight.double().abs().T + bias.abs()
    for deterministic in (False, True):
        assert ((run(x, linear(parts, bias), shape[0], deterministic) - want).abs() <= 2e-6 * size).all()


def test_parts_of_several_kinds():
    x, between = inputs(9, 64), random_compressed(20, 64)
    parts = [random_packed(17, 64, FORMATS[0])[0], between, random_packed(40, 64, FORMATS[7])[0]]
    whole = torch.cat([part.dequantize().float() for part in parts])
    want = x.double() @ whole.double().T
    assert (run(x, linear(parts), 77) - want).abs().max() <= 1e-4 * want.abs().max()
    parts.insert(1, random_hadamard(33, 64))
    got = run(x, linear(parts), 110)
    assert torch.equal(got[:, 17:50], run(x, linear(parts[1:2]), 33))
    assert torch.equal(got[:, 50:], run(x, linear(parts[2:]), 60))


def of_kind(kind, rows, width):
    if kind == "bf16":
        return random_compressed(rows, width)
    return random_hadamard(rows, width) if kind == "row" else random_packed(rows, width, kind)[0]


@pytest.mark.parametrize("kind", ["bf16", "row", *FORMATS], ids=str)
@pytest.mark.parametrize("shape", [(5, 32), (100, 96), (33, 576), (20, 4200)], ids=str)
def test_products_do_not_depend_on_neighbours(kind, shape):
    """What the deterministic mode stands on: a row's result is the same to the bit among any others. Without it, too,
    but for products of bfloat16 in matrix units."""
    part = of_kind(kind, *shape)
    x = torch.randn(70, shape[1])
    for deterministic in (True, False):
        if kind != "row" and not deterministic and "amx" in native.level:
            continue
        whole = run(x, linear([part]), shape[0], deterministic)
        for first, last in ((0, 1), (3, 5), (7, 11), (20, 37), (1, 70)):
            alone = run(x[first:last].clone(), linear([part]), shape[0], deterministic)
            assert torch.equal(alone, whole[first:last])


@pytest.mark.parametrize("strange", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_so(strange):
    x = torch.randn(1, 64)
    x[0, 40] = strange
    for kind in ("bf16", "row", *FORMATS):
        part = of_kind(kind, 8, 64)
        assert not run(x, linear([part]), 8).isfinite().any()


@pytest.mark.parametrize("size", [1e-36, 1e-38, 1e-42])
def test_the_smallest_inputs_count_for_nothing(size):
    """Thirty-two neighbours whose largest has no finite inverse, as tanh-GELU makes them of gates that are shut."""
    x = inputs(3, 96)
    x[:, 32:64] = size
    for packing in FORMATS:
        part = random_packed(8, 96, packing)[0]
        want = x.double() @ part.dequantize().double().T
        assert (run(x, linear([part]), 8) - want).abs().max() <= 1e-5 * want.abs().max()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 70), st.integers(1, 200), st.integers(1, 35), st.sampled_from([None, *FORMATS]))
def test_any_shape(rows, width, tokens, packing):
    part = random_compressed(rows, width) if packing is None else random_packed(rows, width, packing)[0]
    whole = part.dequantize().double() if packing is None else as_multiplied(part, tokens)
    x = inputs(tokens, width)
    want = x.double() @ whole.T
    size = x.double().abs() @ whole.abs().T + 1e-9
    most = 2e-6 if packing is None else error(packing, tokens)
    assert ((run(x, linear([part]), rows) - want).abs() <= most * size).all()
