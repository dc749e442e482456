"""Two products one after the other, of which threads share slices of the width between them, against the two as
operations of their own.

Tolerance: sums are added in another order; what is between them, each thread makes as one thread does.
"""

import pytest
import torch

from tests.ops.plans import FORMATS, in_words, native, random_hadamard, random_packed, seen


def both(x, up, down, bias, act, threads):
    """x after the pair as one operation, and as two."""
    found = []
    norm = torch.rand(x.shape[1]) + 0.5
    prologue = native.norm("rms", norm.data_ptr(), 0, 1e-5, len(norm))
    inner = down.width
    for whole in (True, False):
        plan, y = native.Plan([x.shape[1], inner]), x.clone()
        first = native.Linear(
            native.X, 1, x.shape[1], [seen(part) for part in up], bias[0].data_ptr(), prologue, act, False
        )
        second = native.Linear(
            1, native.X, inner, [seen(down)], bias[1].data_ptr(), native.Prologue(), native.Epilogue(), True
        )
        for op in [native.FeedForward(first, second)] if whole else [first, second]:
            plan.add(op)
        plan.run_head(threads, len(x), y.data_ptr(), False, 0)
        found.append(y)
    return found


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 9, 10, 15, 16, 17, 24, 31, 32])
@pytest.mark.parametrize(("D", "inner"), [(96, 320), (64, 64), (40, 33), (576, 1536)])
@pytest.mark.parametrize("gated", [True, False])
def test_threads_share_the_width_between_two_products(gated, D, inner, tokens, threads):
    x = torch.randn(tokens, D)
    packing = FORMATS[0]
    up = [random_packed(inner, D, packing)[0] for _ in range(2 if gated else 1)]
    down = random_packed(D, inner, packing)[0]
    bias = torch.randn(len(up) * inner), torch.randn(D)
    one, two = both(x, up, down, bias, native.activated("silu", gated), threads)
    assert not torch.equal(one, x)
    if threads == 1 or not in_words(tokens) or tokens > 31:
        assert torch.equal(one, two)
    assert (one - two).abs().max() <= 1e-5 * (two - x).abs().max()


def test_every_format_is_cut():
    x = torch.randn(20, 128)
    for packing in FORMATS:
        up, down = random_packed(384, 128, packing)[0], random_packed(128, 192, packing)[0]
        one, two = both(
            x, [up], down, (torch.randn(384), torch.randn(128)), native.activated("gelu", True), 2
        )
        assert (one - two).abs().max() <= 1e-5 * (two - x).abs().max(), packing


def test_other_weights_are_as_they_were():
    x = torch.randn(20, 128)
    up, down = random_packed(384, 128, FORMATS[0])[0], random_hadamard(128, 192)
    one, two = both(x, [up], down, (torch.randn(384), torch.randn(128)), native.activated("gelu", True), 2)
    assert torch.equal(one, two)
