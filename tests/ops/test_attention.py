"""Heads and attention over the paged cache, against their references."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paragone.ops.attention import attention_reference, visible
from paragone.ops.norm import l2_norm, rms_norm_reference
from paragone.ops.paged import dequantize_rows, quantize_rows, read_slots
from tests.ops.plans import FIXED, PAIRS, Texts, heads_spec, native

HEADS = [(9, 3, 64), (4, 1, 256), (6, 6, 10), (8, 2, 80), (14, 2, 16)]
PARTS = [(0, 1), (4, 2), (36, 1), (0, 40), (255, 1), (256, 70), (599, 1), (100, 130)]


def whole_numbers(x, most):
    """Rows of x as the kernels round them where the largest of a row is `most`."""
    largest = x.float().abs().amax(-1, keepdim=True)
    inverse = torch.where(largest > 2**-100, most / largest, 0)
    return (x * inverse.double()).round() * (largest / most).double()


def check_attention(
    heads, parts, view, softcap=0.0, bias=None, *, eight_bit=False, deterministic=False, change=None
):
    """Attention of some texts' parts, over blocks that lie anywhere, is what float64 gives."""
    H, K, E = heads
    texts = Texts(parts, K, E, eight_bit=eight_bit)
    if change:
        change(texts)
    x = 3 * torch.randn(len(texts.positions), (H + 2 * K) * E)
    spec = heads_spec(heads, texts.cache, scale=E**-0.5)
    cap = softcap or None
    q = x.view(len(x), H + 2 * K, E)[:, :H].double().clone()
    out = torch.empty(len(x), H * E)
    ops = [native.Heads(spec), native.Attend(spec, native.OUT, softcap, "")]
    texts.run(ops, x, out, view, bias, deterministic=deterministic)
    row = 0
    for (start, count), table in zip(parts, texts.tables, strict=True):
        end = start + count
        kv = read_slots(texts.cache, table.long(), 0, end, torch.float64).double()
        # In tiles, numbers of eight bits are rounded to bfloat16, and so are queries where pairs are multiplied;
        # or all are whole numbers, in units of their row's.
        in_tiles = count > 8 and not deterministic
        in_pairs = PAIRS and (in_tiles or not eight_bit)
        fixed = FIXED and in_tiles
        k, v = (kv.bfloat16().double() if in_tiles else kv).chunk(2, dim=1)
        queries = q[None, row : row + count].float() * E**-0.5
        if in_pairs:
            queries = queries.bfloat16()
        if fixed:
            queries, k, v = whole_numbers(queries, 8191), whole_numbers(k, 4095), whole_numbers(v, 4095)
        queries = queries.double() * E**0.5
        at = torch.arange(start, end)[:, None]
        allowed = visible(count, end, view[1] if view[0] == "sliding" else None, x.device)
        if view[0] == "chunked":
            allowed &= torch.arange(end)[None] // view[1] == at // view[1]
        mine = None if bias is None else bias[None, :, :end].double()
        want = attention_reference(queries, k, v, E**-0.5, allowed, cap, mine)[0]
        got = out[row : row + count].view(count, H, E)
        # Where pairs are multiplied, weights of the values are rounded to bfloat16; or to 13 bits of the largest.
        most = 2**-8 if in_pairs else 2**-9 if fixed else 1e-4
        assert (got - want).abs().max() <= most * want.abs().max(), (start, count)
        row += count


VIEWS = [("full", 0), ("sliding", 20), ("chunked", 48)]


@pytest.mark.parametrize("view", VIEWS, ids=str)
@pytest.mark.parametrize("extra", ["plain", "softcap", "bias"])
@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_attention(heads, eight_bit, extra, view):
    """Single tokens, several, and long parts."""
    bias = torch.randn(heads[0], 700) if extra == "bias" else None
    check_attention(heads, PARTS, view, 5.0 if extra == "softcap" else 0.0, bias, eight_bit=eight_bit)


def test_single_tokens_that_see_more_than_is_kept_at_once():
    """A hundred tokens behind thirty thousand, one by one, among some that see little: their sums are joined a
    few tokens at a time."""
    check_attention((12, 1, 64), [(5, 1), (30_000, 100), (300, 1), (0, 3)], ("full", 0), deterministic=True)


@pytest.mark.parametrize("size", [1e-3, 30.0, 300.0])
def test_scores_of_which_later_ones_are_the_largest(size):
    """By as much as e^-x holds, and by more: sums of earlier tiles of slots are nothing beside those of later ones."""

    def grow(texts):
        for table in texts.tables:
            texts.cache[table, :2] *= torch.linspace(1e-3, 1, len(table))[:, None, None, None] * size

    check_attention((6, 2, 64), [(900, 40), (700, 9), (0, 20)], ("full", 0), change=grow)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 45)),
    st.lists(st.tuples(st.integers(0, 600), st.integers(1, 30)), min_size=1, max_size=5),
    st.sampled_from(VIEWS),
    st.booleans(),
    st.booleans(),
)
def test_attention_of_any_shape(sizes, parts, view, eight_bit, deterministic):
    K, group, half = sizes
    check_attention((K * group, K, 2 * half), parts, view, eight_bit=eight_bit, deterministic=deterministic)


@pytest.mark.parametrize("deterministic", [False, True])
def test_attention_does_not_depend_on_neighbours(deterministic):
    """Parts of more than eight tokens cut elsewhere, and with others beside them: the same to the bit."""
    H, K, E = 6, 2, 64
    texts = Texts([(90, 120), (0, 30)], K, E)
    spec = heads_spec((H, K, E), texts.cache)
    x = torch.randn(150, (H + 2 * K) * E)
    whole, cut = torch.empty(150, H * E), torch.empty(120, H * E)
    ops = [native.Heads(spec), native.Attend(spec, native.OUT, 0.0, "")]
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


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_no_number_stays_so_in_eight_bits(number):
    """A key or a value that has overflowed is not taken for another one later."""
    H, K, E = 2, 1, 64
    texts = Texts([(0, 3)], K, E, eight_bit=True)
    x = torch.randn(3, (H + 2 * K) * E)
    x[1, -1] = number  # of the second token's value
    texts.run([native.Heads(heads_spec((H, K, E), texts.cache))], x, x)
    keys, values = read_slots(texts.cache, texts.tables[0].long(), 0, 3, torch.float32)[0]
    assert keys.isfinite().all()
    assert values[[0, 2]].isfinite().all()
    assert not values[1, -1].isfinite()


def test_eight_bit_rows_hold_what_they_can():
    x = torch.randn(50, 3, 64) * torch.logspace(-8, 8, 50)[:, None, None]
    x[0] = 0.0
    for rows in (x, x.bfloat16()):
        back = dequantize_rows(quantize_rows(rows), torch.float32)
        worst = (back - rows.float()).abs().amax(-1) / rows.float().abs().amax(-1).clamp_min(1e-30)
        assert worst.max() <= 0.5 / 127 * 1.01 + 2**-8
        assert torch.equal(back[0], torch.zeros(3, 64))
