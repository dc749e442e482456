"""Norms, activations, mixtures of experts and logits, against their references."""

import pytest
import torch
import torch.nn.functional as F

from paragone.model.linear import Linear
from paragone.model.mlp import MLP, MoE
from paragone.model.spec import MoESpec
from paragone.ops.activation import activate
from paragone.ops.compressed import CompressedMatrix
from paragone.ops.norm import rms_norm_reference
from tests.ops.plans import PAIRS, linear, native, run, run_in_place, seen


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


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("width", [1, 16, 33, 512])
@pytest.mark.parametrize("tokens", [3, 40])
@pytest.mark.parametrize("fused", [False, True])
def test_activations(activation, gated, width, tokens, fused):
    """Of products with the unit matrix: gate and up in one part of the weight, whose halves no block of rows need begin
    with, or in two."""
    size = width * (1 + gated)
    x = (8 * torch.randn(tokens, size)).bfloat16().float()
    x[0, 0], x[1, 0], x[2, 0] = -100.0, 100.0, 0.0  # beyond what e^x can hold
    eye, bias = torch.eye(size).bfloat16(), torch.randn(size)
    parts = [CompressedMatrix.of(part) for part in ([eye] if fused else eye.split(width))]
    got = run(x, linear(parts, bias, None, native.activated(activation, gated)), width)
    # In double: in float32, 1 + tanh loses what is left of it for large negative gates.
    inner = (x + bias).double()
    want = activate(inner[:, :width], activation) * (inner[:, width:] if gated else 1.0)
    assert ((got - want).abs() <= 4e-6 * want.abs() + 1e-6).all()


@pytest.mark.parametrize("tokens", [1, 3, 30])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_mixtures(tokens, score, renormalise, shared):
    D, inner, count = 32, 48, 6

    def matrix(rows, width):
        return Linear([CompressedMatrix.of(torch.randn(rows, width).bfloat16() * width**-0.5)])

    def mlp(width=inner):
        return MLP("silu", matrix(2 * width, D), matrix(D, width))

    spec = MoESpec(count, 2, inner, score, renormalise and score == "softmax", float32_weights=True)
    moe = MoE(spec, matrix(count, D), [mlp() for _ in range(count)], mlp(16) if shared else None,
              matrix(1, D) if shared else None)  # fmt: skip
    weight, x = torch.rand(D) + 0.5, torch.randn(tokens, D)
    wide = MoE(spec, widened(moe.router), [widened(e) for e in moe.experts], moe.shared and widened(moe.shared),
               moe.shared_gate and widened(moe.shared_gate))  # fmt: skip
    want = x + wide(rms_norm_reference(x, weight, 1e-5))

    def product(of, source, target, epilogue=None):
        return native.Linear(source, target, of.in_features, [seen(of.parts[0])], 0, native.Prologue(),
                             epilogue or native.Epilogue(), False)  # fmt: skip

    def pair(of):
        return product(of.up, 1, 3, native.activated("silu", True)), product(of.down, 3, 4)

    op = native.Mixture(
        buffers=(1, 2, 3, 4), D=D, top_k=2, norm=native.norm("rms", weight.data_ptr(), 0, 1e-5, D),
        router=product(moe.router, 1, 2), experts=[pair(e) for e in moe.experts], sigmoid=score == "sigmoid",
        renormalise=spec.renormalise, shared=[pair(moe.shared)] if shared else [],
        shared_gate=[product(moe.shared_gate, 1, 2)] if shared else [],
    )  # fmt: skip
    plan = native.Plan([D, D, count, inner, D])
    plan.add(op)
    plan.run_head(2, tokens, x.data_ptr(), False, 0)
    # A router's inputs are rounded too: where two experts are as good as each other, another may be chosen.
    close = ((x - want).abs().amax(1) <= (0.05 if PAIRS else 1e-4) * want.abs().max()).float().mean()
    assert close >= (0.9 if PAIRS else 1.0)


def widened(of):
    """A matrix or an MLP in float32."""
    if isinstance(of, MLP):
        return MLP(of.activation, widened(of.up), widened(of.down), is_gated=of.is_gated)
    return Linear([part.dequantize().float() for part in of.parts])


def head(x, parts, bias, softcap, *, with_logits):
    """Logits, or none, and the place of the largest of each row."""
    rows = sum(map(len, parts))
    plan = native.Plan([x.shape[1]])
    y = torch.empty(len(x), rows)
    plan.add(native.Head(linear(parts, bias), softcap))
    best = plan.run_head(2, len(x), x.data_ptr(), False, y.data_ptr() if with_logits else 0)
    return y, torch.tensor(best)


@pytest.mark.parametrize("tokens", [1, 4, 20])
@pytest.mark.parametrize("width", [1, 7, 16, 100, 49152])
def test_the_largest_logit(width, tokens):
    """With logits and without: the first of equal ones, and none where one of a row's is not a number."""
    weight = (30 * torch.randn(width, 4)).bfloat16()
    weight[width // 2, 1], weight[:, 2] = 1000.0, -5.0
    weight[[width // 3, width - 1], 3] = 500.0
    cut = width // 3
    parts = [CompressedMatrix.of(part) for part in (weight[:cut], weight[cut:]) if len(part)]
    x = torch.eye(4)[torch.arange(tokens) % 4]
    for softcap in (0.0, 20.0):
        y, best = head(x, parts, None, softcap, with_logits=True)
        want = x @ weight.float().T
        want = torch.tanh(want / softcap) * softcap if softcap else want
        torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
        assert torch.equal(y.gather(1, best[:, None])[:, 0], y.amax(1))
        if tokens > 2:
            assert best[2] == 0
            assert softcap or best[3] == width // 3
        assert torch.equal(head(x, parts, None, softcap, with_logits=False)[1], best)
        bias = torch.zeros(width)
        bias[width // 3] = float("nan")
        for with_logits in (True, False):
            assert (head(x, parts, bias, softcap, with_logits=with_logits)[1] == -1).all()
    for bias in (torch.full((width,), -torch.inf), torch.full((width,), torch.inf)):
        for with_logits in (True, False):
            assert (head(x, parts, bias, 0.0, with_logits=with_logits)[1] == 0).all()
    for place in {0, width // 2, width - 1}:
        bias = torch.full((width,), -torch.inf)
        bias[place] = 0.0
        assert (head(x, parts, bias, 0.0, with_logits=False)[1] == place).all()
