"""Many sequences at once say what each says alone, whatever is batched, cut, preempted, found or aborted."""

import importlib
import random
from dataclasses import replace
from functools import cache

import pytest
import torch

from paragone.checkpoint.checkpoint import open_checkpoint
from paragone.engine.engine import Engine, EngineConfig
from paragone.engine.load import load_model
from paragone.engine.params import SamplingParams
from paragone.engine.request import Request
from paragone.engine.speculate import Speculation
from paragone.errors import ContextLengthExceeded, UsageError
from paragone.model.load import load_decoder
from tests.tiny import CASES

KINDS = ["llama1", "llama2_gqa", "mistral_window", "gemma2", "gemma3", "falcon_rw", "bloom", "falcon_40b", "qwen2_moe",
         "phi3_longrope", "phi", "llama4"]  # fmt: skip
TOLERANCE = 2e-5


@pytest.fixture(scope="module", params=KINDS)
def decoder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    next(c for c in CASES if c.name == request.param).save(folder)
    return load_decoder(open_checkpoint(folder), "fp32")


def prompts(decoder, count, seed=0, longest=60):
    rng = random.Random(seed)
    shared = [rng.randrange(decoder.spec.vocab_size) for _ in range(24)]
    out = []
    for _ in range(count):
        own = [rng.randrange(decoder.spec.vocab_size) for _ in range(rng.randrange(1, longest))]
        out.append((shared if rng.random() < 0.5 else []) + own)
    return out


def requests(decoder, count, seed=0, tokens=12):
    rng = random.Random(seed + 1)
    return [
        Request(ids, SamplingParams(max_tokens=rng.randrange(2, tokens), ignore_eos=True, logprobs=2))
        for ids in prompts(decoder, count, seed)
    ]


def truth(decoder, request):
    """Greedy tokens and their log-probabilities from whole passes, without any cache."""
    return whole_passes(decoder, tuple(request.prompt_ids), request.params.max_tokens)


@cache  # the same questions are asked of many configurations
@torch.inference_mode()
def whole_passes(decoder, prompt_ids, tokens):
    ids, entries = list(prompt_ids), []
    for _ in range(tokens):
        logits = decoder(torch.tensor([ids]))[0, -1].float()
        entries.append(float(logits.log_softmax(-1).max()))
        ids.append(int(logits.argmax()))
    return ids[len(prompt_ids) :], entries


def assert_same(completion, want):
    tokens, entries = want
    assert completion.token_ids == tokens
    got = [entry.logprob for entry in completion.logprobs]
    assert got == pytest.approx(entries, abs=2e-4)


def run_all(engine, asked, *, check=True, between=lambda step: None):
    """Completions in order of `asked`; the engine's state is checked after every step."""
    numbers, done, step = [engine.add(r) for r in asked], {}, 0
    while len(done) < len(asked):
        for chunk in engine.step():
            if chunk.completion is not None:
                done[chunk.index] = chunk.completion
        if check:
            engine.check()
        between(step)
        step += 1
        assert step < 5000
    return [done[n] for n in numbers]


CONFIGS = {
    "roomy": {},
    "small chunks": {"max_num_batched_tokens": 7},
    "one at a time": {"max_num_seqs": 1},
    "no prefixes": {"find_prefixes": False},
    "small blocks": {"block_size": 4, "max_num_batched_tokens": 33},
}


@pytest.mark.parametrize("config", CONFIGS)
def test_together_equals_alone(decoder, config, smollm2_tokenizer):
    asked = requests(decoder, 8)
    engine = Engine(decoder, smollm2_tokenizer, EngineConfig(kv_cache_bytes=20_000_000, **CONFIGS[config]))
    for completion, request in zip(run_all(engine, asked), asked, strict=True):
        assert_same(completion, truth(decoder, request))
    assert all(pool.num_free == pool.num_blocks for pool in engine.blocks.pools)


def barely(decoder, asked, block_size=4):
    """Memory for 1.1 times the largest request."""
    from paragone.model.paged import block_bytes, reaches_of

    longest = max(len(r.prompt_ids) + r.params.max_tokens for r in asked)
    blocks = int(1.1 * longest / block_size) + 2
    return blocks * sum(
        block_bytes(decoder.spec, reach, block_size, decoder.dtype) for reach in reaches_of(decoder.spec)
    )


def test_preempted_equals_undisturbed(decoder, smollm2_tokenizer):
    asked = requests(decoder, 10, seed=3, tokens=25)
    config = EngineConfig(kv_cache_bytes=barely(decoder, asked), block_size=4, max_num_batched_tokens=40)
    engine = Engine(decoder, smollm2_tokenizer, config)
    for completion, request in zip(run_all(engine, asked), asked, strict=True):
        assert_same(completion, truth(decoder, request))
    assert engine.scheduler.num_preemptions > 0
    assert all(pool.num_free == pool.num_blocks for pool in engine.blocks.pools)


def test_found_again_equals_computed(decoder, smollm2_tokenizer):
    asked = requests(decoder, 6, seed=5)
    engine = Engine(decoder, smollm2_tokenizer, EngineConfig(kv_cache_bytes=20_000_000, block_size=4))
    first = run_all(engine, asked)
    hits = engine.blocks.hits
    again = run_all(engine, asked)
    assert engine.blocks.hits > hits
    for one, two in zip(first, again, strict=True):
        assert one.token_ids == two.token_ids
    for completion, request in zip(again, asked, strict=True):
        assert_same(completion, truth(decoder, request))


def test_aborted_neighbours_leave_no_trace(decoder, smollm2_tokenizer):
    asked = requests(decoder, 4, seed=7)
    engine = Engine(decoder, smollm2_tokenizer, EngineConfig(kv_cache_bytes=20_000_000, block_size=4))
    rng = random.Random(1)
    others = []

    def disturb(step):
        others.append(engine.add(rng.choice(asked)))
        if rng.random() < 0.7:
            engine.abort(others.pop(rng.randrange(len(others))))

    numbers, done = [engine.add(r) for r in asked], {}
    step = 0
    while len(done) < len(asked):
        for chunk in engine.step():
            if chunk.completion is not None and chunk.index in numbers:
                done[chunk.index] = chunk.completion
        engine.check()
        disturb(step)
        step += 1
    for number, request in zip(numbers, asked, strict=True):
        assert_same(done[number], truth(decoder, request))
    for number in others:
        engine.abort(number)
    engine.check()
    assert all(pool.num_free == pool.num_blocks for pool in engine.blocks.pools)


def test_tenants_share_nothing(decoder, smollm2_tokenizer):
    engine = Engine(decoder, smollm2_tokenizer, EngineConfig(kv_cache_bytes=20_000_000, block_size=4))
    request = Request([1, 2, 3] * 12, SamplingParams(max_tokens=2))
    cached = []
    for tenant in ("a", "b", "a"):
        number = engine.add(request, tenant=tenant)
        sequence = engine._answers[number].sequence
        while engine.has_work():
            engine.step()
        cached.append(sequence.cached)
    assert cached[:2] == [0, 0]
    assert cached[2] > 0


def test_what_can_never_run_is_refused(smollm2, smollm2_tokenizer):
    config = EngineConfig(kv_cache_bytes=3_000_000)
    engine = Engine(smollm2.decoder, smollm2_tokenizer, config)
    room = engine.blocks.capacity()
    with pytest.raises(ContextLengthExceeded, match=f"the cache holds {room}"):
        engine.add(Request([5] * room, SamplingParams()))
    completion = engine.run([Request([5] * (room - 3), SamplingParams(ignore_eos=True))])[0]
    assert len(completion.token_ids) == 3
    assert completion.finish_reason == "length"
    with pytest.raises(UsageError, match="do not hold two blocks"):
        Engine(smollm2.decoder, smollm2_tokenizer, EngineConfig(kv_cache_bytes=10_000))
    with pytest.raises(ContextLengthExceeded, match="context is 8192"):
        engine.add(Request([5] * 9000, SamplingParams()))
    assert not engine.has_work()


def test_real_weights(smollm2_path):
    model = load_model(smollm2_path, "smollm2", "fp32")
    texts = [
        "The sky is",
        "Once upon a time there was",
        "2 + 2 =",
        "def add(a, b):\n    return",
        "Water boils at",
    ]
    asked = [Request(model.encode(t), SamplingParams(max_tokens=10)) for t in texts * 3]
    engine = Engine(model.decoder, model.tokenizer)
    answers = run_all(engine, asked)
    alone = [model.generate(t, max_tokens=10) for t in texts] * 3
    assert [a.text for a in answers] == [b.text for b in alone]
    assert [a.token_ids for a in answers] == [b.token_ids for b in alone]
    assert engine.stats is not None
    assert engine.stats.blocks_used == 0


POINTS = {
    "allocation": "paragone.engine.block_manager.BlockPool.allocate",
    "hashing": "paragone.engine.block_manager.hash_blocks",
    "finding": "paragone.engine.block_manager.BlockManager.match",
    "planning": "paragone.engine.scheduler.Scheduler._choose",
    "gathering": "paragone.model.forward.PagedStep",
    "embedding": "paragone.model.decoder.Decoder.run",
    "attention": "paragone.model.paged.PagedStep.attend",
    "cache": "paragone.model.paged.write_slots",
    "head": "paragone.model.decoder.Decoder.logits",
    "sampler": "paragone.engine.sampler.Sampler.choose",
    "committing": "paragone.engine.scheduler.Scheduler.commit",
    "text": "paragone.text.stream.TextStream.push",
}


@pytest.fixture(scope="module")
def one_decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    next(c for c in CASES if c.name == "gemma2").save(folder)
    return load_decoder(open_checkpoint(folder), "fp32")


@pytest.mark.parametrize(("how", "error"), [("once", RuntimeError), ("forever", MemoryError)])
@pytest.mark.parametrize("point", POINTS)
def test_a_fault_anywhere(point, how, error, one_decoder, smollm2_tokenizer, monkeypatch):
    """The n-th call fails, for n = 1, 2, ... until it is not reached any more: nobody waits for ever, what
    ends well is what it would have been, and nothing is lost."""
    asked = requests(one_decoder, 4, seed=11, tokens=6)
    want = [truth(one_decoder, request) for request in asked]
    config = EngineConfig(kv_cache_bytes=barely(one_decoder, asked), block_size=4, max_num_batched_tokens=24)
    owner, _, name = POINTS[point].rpartition(".")
    original = resolve(POINTS[point])
    n, ended_well = 0, 0
    while True:
        n += 1 if n < 12 else 7  # every one of the first, then every seventh
        calls = 0

        def failing(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == n or (how == "forever" and calls > n):  # noqa: B023 -- called within this turn
                raise error("made to fail")
            return original(*args, **kwargs)

        static = isinstance(vars(resolve(owner)).get(name), staticmethod)
        with monkeypatch.context() as patch:
            patch.setattr(resolve(owner), name, staticmethod(failing) if static else failing)
            engine = Engine(one_decoder, smollm2_tokenizer, config)
            answers = run_all(engine, asked, check=False)
            reached = calls >= n
        engine.check()
        assert all(pool.num_free == pool.num_blocks for pool in engine.blocks.pools)
        for answer, truly in zip(answers, want, strict=True):
            if answer.finish_reason == "error":
                assert "made to fail" in answer.error
                assert answer.token_ids == truly[0][: len(answer.token_ids)]
            else:
                assert_same(answer, truly)
                ended_well += 1
        failures = sum(a.finish_reason == "error" for a in answers)
        assert failures <= (1 if how == "once" else 4)
        if not reached:
            assert failures == 0
            break
    assert ended_well > 4


def test_a_fault_among_guesses_and_choices(bf16_decoder, smollm2_tokenizer, monkeypatch):
    """The same in the deterministic mode, to the bit, with guesses, two answers a request and eight bits. (The
    first three that are put in line are the requests themselves: they would be refused.)"""
    asked = [
        Request(r.prompt_ids * 2, replace(r.params, n=2, temperature=temperature, seed=3, max_tokens=12))
        for r, temperature in zip(requests(bf16_decoder, 3, seed=11), (0.0, 1.0, 0.05), strict=True)
    ]
    config = EngineConfig(
        deterministic=True, prompt_lookup=True, kv_cache_bits=8, block_size=4, kv_cache_bytes=2_000_000
    )
    monkeypatch.setattr(Speculation, "_worth", lambda _self, _n, _kind, _costs, room: room)

    def answers():
        engine = Engine(bf16_decoder, smollm2_tokenizer, config)
        numbers = [engine.add(request) for request in asked]
        done = {}
        for _ in range(1000):
            for chunk in engine.step():
                if chunk.completion is not None:
                    done[numbers.index(chunk.index), chunk.choice] = chunk.completion
            if not engine.has_work():
                break
        engine.check()
        assert all(pool.num_free == pool.num_blocks for pool in engine.blocks.pools)
        assert not engine.speculation.proposer._places
        return done

    want = answers()
    assert sum(answer.accepted_tokens for answer in want.values()) > 0
    for point in MORE_POINTS:
        original, (owner, _, name) = resolve(point), point.rpartition(".")
        for n in (1, 2, 3, 5, 8, 13, 21, 34):
            calls = 0

            def failing(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == n + (3 if name == "add" else 0):  # noqa: B023 -- called within this turn
                    raise RuntimeError("made to fail")
                return original(*args, **kwargs)  # noqa: B023

            with monkeypatch.context() as patch:
                patch.setattr(resolve(owner), name, failing)
                got = answers()
            assert got.keys() == want.keys()
            failed = [key for key, answer in got.items() if answer.finish_reason == "error"]
            assert len(failed) <= 1, (point, n)
            for key, answer in got.items():
                truly = want[key]
                count = len(answer.token_ids)
                assert answer.token_ids == truly.token_ids[:count]
                assert answer.logprobs == truly.logprobs[:count]
                assert key in failed or count == len(truly.token_ids)


MORE_POINTS = [
    "paragone.engine.speculate.PromptLookup.kind",
    "paragone.engine.speculate.PromptLookup.propose",
    "paragone.engine.speculate.Speculation.checked",
    "paragone.engine.answer.Answer.choose",
    "paragone.engine.answer.Answer.take",
    "paragone.engine.scheduler.Scheduler.add",
    "paragone.model.plan.Plan._run",
    "paragone.model.plan.Plan.logits",
    "paragone.model.decoder.Decoder.embedded",
]


@pytest.fixture(scope="module")
def bf16_decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    next(c for c in CASES if c.name == "gemma2").save(folder)
    return load_decoder(open_checkpoint(folder), "bf16")


def resolve(path):
    """What a dotted name stands for: a module, or an attribute of one, or of a class."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise AssertionError(path)


def test_logits_are_made_only_where_somebody_needs_them(bf16_decoder, smollm2_tokenizer, monkeypatch):
    """Who takes the most likely token says the same beside those who look at logits, who get them."""
    plain = [replace(r, params=replace(r.params, logprobs=None)) for r in requests(bf16_decoder, 4, seed=2)]
    curious = [
        replace(plain[0], params=replace(plain[0].params, **changed))
        for changed in (
            {"temperature": 1.0, "seed": 1}, {"logprobs": 1}, {"repetition_penalty": 1.3}, {"logit_bias": ((5, 9.0),)},
            {"presence_penalty": 0.5}, {"frequency_penalty": 0.5}, {"allowed_token_ids": (3, 4)},
            {"min_tokens": 2, "ignore_eos": False, "stop_token_ids": (7,)},
        )
    ]  # fmt: skip
    config = EngineConfig(deterministic=True, kv_cache_bytes=20_000_000)
    engine = Engine(bf16_decoder, smollm2_tokenizer, config)
    made = []
    logits = engine.runner.run.logits
    monkeypatch.setattr(engine.runner.run, "logits", lambda *rows: made.append(len(rows[0])) or logits(*rows))
    alone = run_all(engine, plain)
    assert not made
    for request in curious:
        made.clear()
        *beside, last = run_all(engine, [*plain, request])
        assert made
        assert [one.token_ids for one in beside] == [one.token_ids for one in alone]
        assert last.error is None
        assert len(last.token_ids) == request.params.max_tokens
        assert len(last.logprobs) == (len(last.token_ids) if request.params.logprobs else 0)
