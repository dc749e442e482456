"""Weights in bfloat16 in twelve bits a number: nothing is lost, whatever the numbers are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paragone.ops.compressed import CompressedMatrix


def bits(tensor):
    return tensor.contiguous().view(torch.int16)


def drawn(kind, rows, width):
    if kind == "trained":
        return (torch.randn(rows, width) * torch.logspace(-3, 0, rows)[:, None]).bfloat16()
    if kind == "pruned":
        return (torch.randn(rows, width) * (torch.rand(rows, width) < 0.3)).bfloat16()
    if kind == "wide":  # exponents far apart within a row
        return torch.randn(rows, width).mul(2.0 ** torch.randint(-120, 120, (rows, width))).bfloat16()
    return torch.randint(-(2**15), 2**15, (rows, width), dtype=torch.int16).view(torch.bfloat16)  # also NaN


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.sampled_from(["trained", "pruned", "wide", "any bits"]),
    st.integers(1, 70),
    st.integers(1, 100),
    st.booleans(),
)
def test_nothing_is_lost(kind, rows, width, in_pieces):
    torch.manual_seed(rows * width)
    weight = drawn(kind, rows, width)
    matrix = CompressedMatrix(rows, width)
    step = 16 if in_pieces else rows
    for first in range(0, rows, step):
        matrix.put(first, weight[first : first + step])
    assert torch.equal(bits(matrix.dequantize()), bits(weight))
    first, last = rows // 3, rows - rows // 4
    assert torch.equal(bits(matrix.dequantize(first, last)), bits(weight[first:last]))
    ids = [rows - 1, 0, rows // 2]
    assert torch.equal(bits(matrix.rows_of(ids).bfloat16()), bits(weight[ids].float().bfloat16()))


def test_inputs_whose_numbers_are_large_in_all_rows_are_not_outliers():
    torch.manual_seed(0)
    weight = 1 + torch.rand(48, 576)
    weight[:, [5, 101, 334]] *= 64.0
    matrix = CompressedMatrix.of(weight.bfloat16())
    assert len(matrix.outliers) == len(matrix.panels)  # the ends of the lists


def test_every_bit_pattern():
    weight = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(256, 256).view(torch.bfloat16)
    assert torch.equal(bits(CompressedMatrix.of(weight).dequantize()), bits(weight))


def test_rows_in_another_order_at_an_odd_address():
    raw = np.zeros(1 + 2 * 40 * 24, dtype=np.uint8)
    weight = torch.randn(40, 24).bfloat16()
    raw[1:] = weight.view(torch.uint8).numpy().reshape(-1)
    matrix, order = CompressedMatrix(40, 24), np.random.default_rng(0).permutation(40)
    matrix.put_stored(0, raw.ctypes.data + 1, order)
    assert torch.equal(matrix.dequantize(), weight[torch.from_numpy(order)])


def test_trained_weights_take_three_quarters():
    weight = torch.randn(512, 2048).bfloat16()
    assert CompressedMatrix.of(weight).nbytes < 0.76 * weight.nbytes


@pytest.mark.parametrize("ids", [[-1], [0, 40]])
def test_rows_that_there_are_not(ids):
    with pytest.raises(IndexError, match=f"rows {min(ids)} to {max(ids)} of 40"):
        CompressedMatrix.of(torch.randn(40, 24).bfloat16()).rows_of(ids)
