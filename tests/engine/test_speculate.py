"""Guesses change nothing but speed: greedy or drawn, with every attention kind, together and preempted."""

import random
from dataclasses import replace

import pytest
import torch

from paragone.checkpoint.checkpoint import open_checkpoint
from paragone.engine import speculate
from paragone.engine.config import EngineConfig
from paragone.engine.engine import Engine
from paragone.engine.load import load_model
from paragone.engine.params import SamplingParams
from paragone.engine.request import Request
from paragone.engine.scheduler import Scheduled
from paragone.engine.speculate import DraftModel, PromptLookup, Speculation
from paragone.errors import UsageError
from paragone.model.load import load_decoder
from tests.engine.test_engine import KINDS, assert_same, barely, run_all, truth
from tests.real import GEMMA3, path_of
from tests.tiny import CASES

CONFIG = EngineConfig(kv_cache_bytes=20_000_000, block_size=4, prompt_lookup=True)


@pytest.fixture(scope="module", params=KINDS)
def decoder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    next(c for c in CASES if c.name == request.param).save(folder)
    return load_decoder(open_checkpoint(folder), "fp32")


@pytest.fixture
def always(monkeypatch):
    """As many guesses as there are, whatever they cost."""
    monkeypatch.setattr(Speculation, "_worth", lambda _self, _n, _kind, _costs, room: room)


def repeating(decoder, count, temperature=0.0):
    """Prompts that say the same again and again, so that there is much to look up, right or wrong."""
    rng = random.Random(4)
    out = []
    for n in range(count):
        piece = [rng.randrange(decoder.spec.vocab_size) for _ in range(rng.randrange(3, 9))]
        params = SamplingParams(
            max_tokens=rng.randrange(1, 20), temperature=temperature, seed=n, ignore_eos=True, logprobs=1
        )
        out.append(Request(piece * 5, params))
    return out


def forced(decoder, tokens, monkeypatch):
    """Guesses that are right, up to a place that moves: what the model says itself, then something else."""
    rng = random.Random(3)

    def propose(_self, number, token_ids, most):
        answer = tokens[number % len(tokens)]
        guess = [*answer, 1, 2, 3, 4, 5, 6, 7][len(token_ids) - lengths[number % len(tokens)] :][:most]
        wrong = rng.randrange(most + 1)
        return [*guess[:wrong], *((t + 1) % decoder.spec.vocab_size for t in guess[wrong:])]

    lengths = {}
    monkeypatch.setattr(PromptLookup, "kind", lambda *_: 3)
    monkeypatch.setattr(PromptLookup, "propose", propose)
    return lengths


@pytest.mark.parametrize("tight", [False, True])
def test_looked_up_equals_undisturbed(decoder, smollm2_tokenizer, always, tight):
    asked = repeating(decoder, 8)
    config = replace(CONFIG, kv_cache_bytes=barely(decoder, asked)) if tight else CONFIG
    engine = Engine(decoder, smollm2_tokenizer, config)
    for completion, request in zip(run_all(engine, asked), asked, strict=True):
        assert_same(completion, truth(decoder, request))
    assert engine.speculation.guessed > 0
    assert all(pool.num_free == pool.num_blocks for pool in engine.blocks.pools)


def test_right_and_wrong_guesses(decoder, smollm2_tokenizer, always, monkeypatch):
    asked = repeating(decoder, 5)
    want = [truth(decoder, request) for request in asked]
    lengths = forced(decoder, [tokens for tokens, _ in want], monkeypatch)
    lengths.update({n: len(r.prompt_ids) for n, r in enumerate(asked)})
    engine = Engine(decoder, smollm2_tokenizer, CONFIG)
    answers = run_all(engine, asked)
    for completion, truly in zip(answers, want, strict=True):
        assert_same(completion, truly)
    assert 0 < engine.speculation.accepted < engine.speculation.guessed
    assert sum(a.accepted_tokens for a in answers) == engine.speculation.accepted


def test_drawn_tokens_stay_the_same(decoder, smollm2_tokenizer, always):
    """More than the same distribution: the same tokens, because a request's stream gives one number a token."""
    asked = repeating(decoder, 8, temperature=0.7)
    plain = run_all(Engine(decoder, smollm2_tokenizer, replace(CONFIG, prompt_lookup=False)), asked)
    guessed = run_all(Engine(decoder, smollm2_tokenizer, CONFIG), asked)
    assert [a.token_ids for a in guessed] == [b.token_ids for b in plain]


def test_a_draft_model(decoder, smollm2_tokenizer, always, tmp_path_factory):
    """A model that guesses for itself is right nearly always; another one nearly never; both change nothing."""
    asked = repeating(decoder, 4)
    folder = tmp_path_factory.mktemp("draft")
    next(c for c in CASES if c.name == "llama1").save(folder)
    other = load_decoder(open_checkpoint(folder), "fp32")
    rates = []
    for draft in (decoder, other):
        engine = Engine(decoder, smollm2_tokenizer, replace(CONFIG, prompt_lookup=False), draft)
        for completion, request in zip(run_all(engine, asked), asked, strict=True):
            assert_same(completion, truth(decoder, request))
        rates.append(engine.speculation.accepted / max(1, engine.speculation.guessed))
        assert not engine.speculation.proposer._texts
    assert rates[0] > 0.95


def test_a_draft_beside_a_model(smollm2, smollm2_path, always):
    """The same model in int4 guesses well for itself in bf16, and answers do not change."""
    small = load_model(smollm2_path, "small", "int4")
    with_draft = replace(smollm2, draft=small)
    text = "The ferry was late again on Thursday. The captain said that"
    got, want = (model.generate(text, max_tokens=40) for model in (with_draft, smollm2))
    assert got.token_ids == want.token_ids
    assert got.guessed_tokens > 0
    assert got.accepted_tokens > 0.5 * got.guessed_tokens


def test_a_draft_of_another_vocabulary_is_refused(smollm2):
    other = load_model(path_of(GEMMA3), GEMMA3, "int4")
    with pytest.raises(UsageError, match="token 0 is not the same in their vocabularies"):
        replace(smollm2, draft=other).generate("x")


def test_the_latest_place_is_looked_up():
    lookup = PromptLookup()
    ids = [1, 2, 3, 9, 1, 2, 3, 8, 5, 1, 2, 3]
    assert lookup.kind(0, ids) == 3
    assert lookup.propose(0, ids, 2) == [8, 5]
    ids += [9]
    assert lookup.kind(0, ids) == 4
    assert lookup.propose(0, ids, 9) == [1, 2, 3, 8, 5, 1, 2, 3, 9]
    assert lookup.kind(1, [1, 2, 3]) is None
    assert lookup.kind(2, [7, 7, 7]) == 2
    assert lookup.propose(2, [7, 7, 7], 4) == [7]
    lookup.forget(0)
    assert not lookup._places.keys() & {0}


def simulated(rate, step, rounds=400, guess_s=0.0, reading_s=0.0):
    """How many times as fast with guesses that are right with a probability, where a step of n tokens takes
    step(n), a guess guess_s, and reading the prompt before the first of them reading_s."""
    rng, clock = random.Random(1), [0.0]

    class Always:
        read = False

        def kind(self, number, token_ids):
            return 3

        def behind(self, number, token_ids):
            return 0 if self.read else 1000

        def propose(self, number, token_ids, most):
            clock[0] += guess_s * most + (0 if self.read else reading_s)
            self.read = True
            return [0] * most

        def forget(self, number):
            pass

    class Fake:
        number, token_ids, max_tokens, num_answer, draft, is_prefill = 0, [1], 10**6, 0, [], False

    speculation, sequence, spent, tokens = Speculation(Always()), Fake(), 0.0, 0
    for _ in range(rounds):
        begin = clock[0]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(speculate.time, "perf_counter", lambda: clock[0])
            speculation.guess([sequence], lambda _length: 0)
        guessing = clock[0] - begin
        count = 1 + len(sequence.draft)
        part = Scheduled(sequence, 0, count, count, tuple(sequence.draft))
        accepted = 0
        while accepted < len(sequence.draft) and rng.random() < rate:
            accepted += 1
        if sequence.draft:
            speculation.checked(part, accepted)
        speculation.learn([part], step(count) + guessing)
        spent += step(count) + guessing
        tokens += 1 + accepted
    return tokens / spent * step(1), speculation


def test_it_switches_itself_off_where_it_does_not_pay():
    free = lambda n: 1.0 + 0.05 * n  # noqa: E731
    dear = lambda n: 1.0 * n  # noqa: E731
    assert simulated(0.9, free)[0] > 3
    assert simulated(0.5, free)[0] > 1.3
    assert simulated(0.02, free)[0] > 0.97
    for rate in (0.0, 0.5, 0.9):
        assert simulated(rate, dear)[0] > 0.94
    gained, speculation = simulated(0.8, lambda n: 1.0 + 0.2 * n)
    assert gained > 1.3
    assert speculation.saved_s > 0


def test_a_draft_model_s_time_is_counted_once():
    flat = lambda _n: 20.0  # noqa: E731 -- as where reading the weights is all
    plain, dear = simulated(0.75, flat, guess_s=1.0)[0], simulated(0.75, flat, guess_s=8.0)[0]
    assert plain > 2.2
    assert dear > 1.15
    # What the first guess takes to read the prompt says nothing about the others.
    assert simulated(0.75, flat, rounds=4000, guess_s=1.0, reading_s=2000.0)[0] > 0.93 * plain


def test_a_draft_model_keeps_to_its_memory(decoder, smollm2_tokenizer, always):
    asked = repeating(decoder, 6)
    few = replace(CONFIG, prompt_lookup=False, kv_cache_bytes=2 * barely(decoder, asked, 4))
    engine = Engine(decoder, smollm2_tokenizer, few, decoder)
    draft = engine.speculation.proposer
    most = 0

    def watch(_step):
        nonlocal most
        most = max(most, sum(len(text.blocks) for text in draft._texts.values()))
        assert sorted([*draft._free, *(b for t in draft._texts.values() for b in t.blocks)]) == list(
            range(draft.num_blocks)
        )
        running = {sequence.number for sequence in engine.scheduler.running}
        assert running.issuperset(draft._texts) or engine.scheduler.num_preemptions

    for completion, request in zip(run_all(engine, asked, between=watch), asked, strict=True):
        assert_same(completion, truth(decoder, request))
    assert 0 < most <= draft.num_blocks


def test_nothing_is_guessed_behind_the_end(smollm2):
    """What comes after an end, guessed rightly or not, is nobody's business: no mask and no error of it."""
    end = 7

    def allowed(ids):
        mask = torch.zeros(10, dtype=torch.bool)
        mask[end] = not ids  # nothing is allowed behind the end
        return mask

    for stop_ids in ((end,), ()):
        params = SamplingParams(max_tokens=5, stop_token_ids=stop_ids, ignore_eos=True)
        request = Request([1, 2, 3], params, allowed=lambda: allowed)
        engine = Engine(smollm2.decoder, smollm2.tokenizer, CONFIG)
        number = engine.add(request)
        answer = engine._answers[number]
        part = Scheduled(answer.sequence, 2, 3, 3, (end, end))
        tokens, _ = answer.choose(part, torch.zeros(3, 10), [0, 0, 0], 0)
        assert tokens == [end]


def test_what_goes_wrong_with_guesses_costs_no_answer(decoder, smollm2_tokenizer, always, monkeypatch):
    def broken(*_):
        raise MemoryError("made to fail")

    monkeypatch.setattr(PromptLookup, "propose", broken)
    asked = repeating(decoder, 3)
    for completion, request in zip(
        run_all(Engine(decoder, smollm2_tokenizer, CONFIG), asked), asked, strict=True
    ):
        assert_same(completion, truth(decoder, request))


def test_real_text(smollm2):
    """An instruction to repeat: guesses are right, and the greedy answer is the same in bfloat16, too."""
    text = (
        "The ferry was late again on Thursday. The captain said that the fog had come down over the harbour before "
        "six, and that nobody could see the lamps at the end of the pier."
    )
    ask = f"Repeat this text word for word:\n\n{text}"
    plain = smollm2.chat(ask, max_tokens=48)
    model = replace(smollm2, engine_config=EngineConfig(prompt_lookup=True))
    guessed = model.chat(ask, max_tokens=48)
    assert guessed.token_ids == plain.token_ids
    assert guessed.accepted_tokens > 0
    assert torch.is_inference_mode_enabled() is False
    assert speculate.MOST == 7
    draft = DraftModel(smollm2.decoder, smollm2.decoder.spec.vocab_size, 1000)
    assert isinstance(draft.propose(0, [1, 2, 3], 4), list)
