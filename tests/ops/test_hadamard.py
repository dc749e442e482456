"""Weights in eight bits with a scale for each row. Products are exact but for the last rounding, for the inputs are
chosen so that eight bits hold them once they are turned; others differ by what rounding them costs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paragone.ops.hadamard import MOST_WIDTH, HadamardMatrix, turned
from tests.ops.plans import (
    SHAPES,
    linear,
    native,
    random_hadamard,
    run,
    run_in_place,
    seen,
    turned_inputs,
)


def test_turning_is_the_hadamard_matrix():
    """Of Sylvester's construction; and twice is 64 times."""
    H = torch.ones(1, 1)
    for _ in range(6):
        H = torch.cat((torch.cat((H, H), 1), torch.cat((H, -H), 1)))
    x = torch.randn(5, 130, dtype=torch.float64).float()
    padded = torch.nn.functional.pad(x, (0, 62)).double()
    want = (padded.view(5, 3, 64) @ H.double()).flatten(1)
    assert (turned(x) - want).abs().max() <= 1e-5
    assert (turned(turned(x)) / 64 - padded).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [0, 1e-42, 1e-30, 1e-6, 1, 1e3, 1e30])
def test_the_kernels_round_as_the_reference_does(size, dtype):
    for rows, width in [*SHAPES, (3, 31), (17, 129)]:
        weight = (torch.randn(rows, width) * torch.logspace(-4, 1, rows)[:, None] * size).to(dtype)
        if not weight.isfinite().all():
            continue  # more than float16 holds
        got, want = HadamardMatrix(rows, width), HadamardMatrix(rows, width)
        for at in range(0, rows, 5):
            got.put(at, weight[at : at + 5])
        want._put(0, weight)
        assert torch.equal(got.panels, want.panels)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_rounding_costs(shape):
    """Half a code of the largest turned number, for each of them."""
    weight = torch.randn(shape) * torch.logspace(-4, 2, shape[0])[:, None]
    matrix = HadamardMatrix(*shape)
    matrix.put(0, weight)
    off, most = matrix.dequantize() - weight, 0.501 * turned(weight).abs().amax(1) / 127
    assert (off.norm(dim=1) <= most * turned(weight).shape[1] ** 0.5 / 8).all()
    if shape[1] % 64 == 0:
        assert (turned(off).abs().amax(1) <= most).all()
    ids = [shape[0] - 1, 0, shape[0] // 2]
    assert torch.equal(matrix.rows_of(ids), matrix.dequantize()[ids])
    assert torch.equal(matrix.dequantize(shape[0] // 2), matrix.dequantize()[shape[0] // 2 :])
    for wrong in (-1, shape[0]):
        with pytest.raises(IndexError):
            matrix.rows_of([0, wrong])


def test_one_large_number_costs_the_others_little():
    """What turning is for: without it a scale for a row would leave a hundredth of them."""
    weight = torch.randn(16, 256)
    weight[:, 40] = 200.0
    matrix = HadamardMatrix(16, 256)
    matrix.put(0, weight)
    off = (matrix.dequantize() - weight).square().mean().sqrt()
    assert off < 0.1
    assert off < 0.2 * (weight.abs().amax() / 127 / 12**0.5)


def check(matrix, x, bias=None):
    weight, more = matrix.dequantize().double(), torch.zeros(len(matrix)) if bias is None else bias
    want = x.double() @ weight.T + more.double()
    # What float32 makes of a run's 64 numbers is off by what it is of the largest.
    size = x.double().abs().sum(1, keepdim=True) * weight.abs().amax(1) + more.abs()
    assert ((run(x, linear([matrix], bias), len(matrix)) - want).abs() <= 2e-6 * size).all()


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 6, 7, 12, 13, 16, 17, 33, 40])
@pytest.mark.parametrize("shape", [*SHAPES, (129, 2048), (48, 4200)], ids=str)
def test_products(shape, tokens):
    check(random_hadamard(*shape), turned_inputs(tokens, shape[1]), torch.randn(shape[0]))


@pytest.mark.parametrize("tokens", [16, 20, 31, 32, 47, 64, 130, 257, 300])
@pytest.mark.parametrize("shape", [(16, 64), (48, 576), (96, 128), (40, 200), (161, 64)], ids=str)
def test_products_without_bias(shape, tokens):
    """Outputs that are stored as they are, but for a last panel's; of more tokens than pass the panels at once."""
    check(random_hadamard(*shape), turned_inputs(tokens, shape[1]))


@pytest.mark.parametrize("tokens", [15, 16, 17, 31, 33, 47, 65, 130, 300])
@pytest.mark.parametrize("width", [64, 80, 100, 192])
def test_products_are_added_to_what_is_there(width, tokens):
    """Once to each, though some tokens are in two tiles."""
    matrix, x = random_hadamard(width, width), turned_inputs(tokens, width)
    weight, got = matrix.dequantize().double(), x.clone()
    parts = [seen(matrix)], 0, native.Prologue(), native.Epilogue()
    run_in_place(got, native.Linear(native.X, native.X, width, *parts, True))
    size = x.double().abs().sum(1, keepdim=True) * (weight.abs().amax(1) + 1)
    assert ((got - x - x.double() @ weight.T).abs() <= 2e-6 * size).all()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(1, 70), st.integers(1, 300), st.integers(1, 50))
def test_any_shape(rows, width, tokens):
    check(random_hadamard(rows, width), turned_inputs(tokens, width), torch.randn(rows))


@pytest.mark.parametrize("shape", [(64, 64), (40, 576), (33, 1500)], ids=str)
def test_inputs_in_eight_bits(shape):
    """Any inputs: a token's scale is that of its largest number once it is turned."""
    matrix, x = random_hadamard(*shape), torch.randn(20, shape[1]) * torch.logspace(-6, 6, 20)[:, None]
    x[3, 7] *= 100
    weight = matrix.dequantize()
    want = x.double() @ weight.double().T
    step = turned(x).abs().amax(1, keepdim=True) / 127 / 64
    usual = step / 12**0.5 * turned(weight).norm(dim=1)  # what independent roundings add up to
    assert ((run(x, linear([matrix]), shape[0]) - want).abs() <= 5 * usual).all()


@pytest.mark.parametrize("size", [1e-36, 1e-38, 1e-42, 0.0])
def test_the_smallest_inputs(size):
    """Those whose largest has no finite inverse count for nothing."""
    x = turned_inputs(3, 192)
    x[1] = size
    matrix = random_hadamard(8, 192)
    got = run(x, linear([matrix]), 8)
    assert got[1].abs().max() <= 1e-30
    check(matrix, x[[0, 2]], torch.zeros(8))


def test_the_largest_sums_fit():
    """As wide as a matrix may be, all codes as large as they get, and of one sign."""
    matrix = HadamardMatrix(16, MOST_WIDTH)
    ones = torch.zeros(16, MOST_WIDTH)
    ones[:, ::64] = 64.0  # turned, all are 64
    matrix.put(0, ones)
    x = ones[:2].clone()
    x[1] *= -1
    got = run(x, linear([matrix]), 16)
    want = float(64 * 64 * (MOST_WIDTH // 64))
    torch.testing.assert_close(got, torch.tensor([[want], [-want]]).expand(2, 16), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="inputs"):
        HadamardMatrix(1, MOST_WIDTH + 64)
