"""Sampling: distributions against arithmetic, bounds, streams of random numbers."""

import math
from collections import Counter

import pytest
import torch

from paragone.engine.params import SamplingParams
from paragone.engine.sampler import Sampler, token_logprobs
from paragone.errors import MalformedData, UsageError
from paragone.ops import implementation

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def draws(count=4000, prompt=(0,), **settings):
    sampler = Sampler(SamplingParams(**settings), list(prompt), len(LOGITS))
    return Counter(sampler.choose(LOGITS)[0] for _ in range(count))


def expect(counts, probs):
    total = sum(counts.values())
    for token, p in enumerate(probs):
        error = 5 * math.sqrt(max(p * (1 - p), 1e-9) / total) + 1e-9
        assert abs(counts[token] / total - p) <= error, (token, counts[token] / total, p)


def test_greedy_is_the_most_likely():
    assert draws(5) == {0: 5}
    assert draws(5, temperature=0.0, top_k=3, top_p=0.5) == {0: 5}


def test_temperature():
    expect(draws(temperature=1.0, seed=1), LOGITS.softmax(-1).tolist())
    expect(draws(temperature=2.5, seed=1), (LOGITS / 2.5).softmax(-1).tolist())


def test_top_k():
    p = LOGITS.softmax(-1)[:3]
    expect(draws(temperature=1.0, top_k=3, seed=2), [*(p / p.sum()).tolist(), 0, 0, 0])
    assert draws(50, temperature=1.0, top_k=1, seed=2) == {0: 50}


def test_top_p_takes_the_fewest_that_reach_it():
    p = LOGITS.softmax(-1)
    assert p[0] < 0.7 < p[0] + p[1]
    q = p[:2] / p[:2].sum()
    expect(draws(temperature=1.0, top_p=0.7, seed=3), [*q.tolist(), 0, 0, 0, 0])
    assert draws(50, temperature=1.0, top_p=1e-6, seed=3) == {0: 50}


def test_top_p_is_of_what_top_k_left():
    p = LOGITS.softmax(-1)[:3]
    p = p / p.sum()
    assert p[0] < 0.8 < p[0] + p[1]
    q = p[:2] / p[:2].sum()
    expect(draws(temperature=1.0, top_k=3, top_p=0.8, seed=4), [*q.tolist(), 0, 0, 0, 0])


def test_top_p_of_a_flat_distribution_over_many():
    """More tokens than are sorted at first."""
    logits = torch.zeros(5000)
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=0.5, seed=1), [0], 5000)
    seen = {sampler.choose(logits)[0] for _ in range(3000)}
    assert 1100 < len(seen) <= 2501


def test_min_p():
    p = LOGITS.softmax(-1)
    kept = torch.where(p >= 0.2 * p.max(), p, 0)
    expect(draws(temperature=1.0, min_p=0.2, seed=5), (kept / kept.sum()).tolist())


def test_repetition_penalty_covers_prompt_and_answer():
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), [0, 4], len(LOGITS))
    logits = LOGITS + torch.tensor([0.0, 0.1, 0.0, 0.0, 0.0, 0.0])
    # seen 0: 2.0 / 2; seen 4: -1.0 * 2; so 1 (1.1) wins, and once it is seen too (0.55), 0 does
    assert [sampler.choose(logits)[0] for _ in range(2)] == [1, 0]
    assert sampler._changed(logits, None).tolist() == pytest.approx([1.0, 0.55, 0.5, 0.0, -2.0, -3.0])


def test_presence_and_frequency_penalties_count_the_answer_only():
    sampler = Sampler(SamplingParams(presence_penalty=0.5, frequency_penalty=0.4), [0, 0, 0], len(LOGITS))
    # 0: 2.0, then 2.0 - 0.9 = 1.1, then 2.0 - 1.3 = 0.7 < 1.0, so 1 comes third, 0 again fourth
    assert [sampler.choose(LOGITS)[0] for _ in range(4)] == [0, 0, 1, 0]
    want = LOGITS - 0.4 * torch.tensor([3, 1, 0, 0, 0, 0]) - 0.5 * torch.tensor([1, 1, 0, 0, 0, 0])
    assert torch.allclose(sampler._changed(LOGITS, None), want)


def test_same_seed_same_draws_other_seed_others():
    def sequence(seed):
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed), [0], len(LOGITS))
        return [sampler.choose(LOGITS)[0] for _ in range(40)]

    assert sequence(7) == sequence(7)
    assert sequence(7) != sequence(8)
    params = SamplingParams(temperature=1.0)
    assert params.seeded().seed is not None
    assert params.seeded().seed != params.seeded().seed, "each request draws its own"
    assert SamplingParams().seeded().seed is None


def test_logprobs_are_of_the_models_distribution():
    entry = token_logprobs(LOGITS.bfloat16(), 2, 3)
    want = LOGITS.log_softmax(-1)
    assert entry.logprob == pytest.approx(float(want[2]), abs=1e-5)
    assert [i for i, _ in entry.top] == [0, 1, 2]
    assert [p for _, p in entry.top] == pytest.approx(want[:3].tolist(), abs=1e-5)


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"temperature": "1"},
        {"temperature": True}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_p": float("nan")}, {"top_k": -1}, {"top_k": 1.5},
        {"min_p": -0.1}, {"min_p": 1.1}, {"repetition_penalty": 0.0}, {"repetition_penalty": float("inf")},
        {"presence_penalty": float("nan")}, {"frequency_penalty": 1000.0}, {"max_tokens": 0}, {"max_tokens": -1},
        {"max_tokens": 2.5}, {"seed": -1}, {"seed": 1 << 63}, {"logprobs": -1}, {"logprobs": 21}, {"stop": ("",)},
        {"stop": ("x" * 300,)},
    ],
)  # fmt: skip
def test_settings_out_of_bounds_are_named(bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        SamplingParams(**bad)


SETTINGS = [
    {"temperature": 1.0},
    {"temperature": 0.3, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 40},
    {"temperature": 1.7, "top_k": 100, "top_p": 0.8},
    {"temperature": 0.8, "min_p": 0.05},
    {"temperature": 0.9, "top_p": 0.95, "min_p": 0.01},
    {"temperature": 1e-3},
    {"temperature": 1e-3, "top_p": 0.5},
]


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 49152])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_kernel_draws_what_torch_draws(settings, size):
    """The same random numbers give the same tokens, but where rounding moves an edge past one of them."""
    generator = torch.Generator().manual_seed(size)
    rows = 4 * torch.randn(60, size, generator=generator)

    def tokens():
        sampler = Sampler(SamplingParams(**settings, seed=5), [0], size)
        return [sampler.choose(row)[0] for row in rows]

    with implementation("torch"):
        want = tokens()
    got = tokens()
    assert sum(a == b for a, b in zip(got, want, strict=True)) >= 59


@pytest.mark.parametrize("strange", [float("nan"), float("inf"), -float("inf")])
def test_the_kernel_draws_from_numbers_only(strange):
    for settings in SETTINGS:
        with pytest.raises(MalformedData):
            Sampler(SamplingParams(**settings, seed=5), [0], 50).choose(torch.full((50,), strange))
