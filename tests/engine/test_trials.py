"""Many random ways to run the same requests in the deterministic mode: what each says is the same to the bit.

Little memory: workloads in a cache that holds 1.1 times the largest request, checked after every step.
Needles: one request among random others, joining late, beside aborted ones, found again, guessed, cut,
streamed or not.
"""

import asyncio
import random
from dataclasses import replace

import pytest

from paragone.checkpoint.checkpoint import open_checkpoint
from paragone.engine.async_engine import AsyncEngine
from paragone.engine.config import EngineConfig
from paragone.engine.engine import Engine
from paragone.engine.params import SamplingParams
from paragone.engine.request import Request
from paragone.engine.speculate import Speculation
from paragone.model.load import load_decoder
from tests.engine.test_deterministic import barely
from tests.engine.test_engine import KINDS
from tests.tiny import CASES

WORKLOADS = NEEDLES = 17  # for each of twelve kinds: 204 of each


@pytest.fixture(scope="module", params=KINDS)
def decoder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    next(c for c in CASES if c.name == request.param).save(path)
    return load_decoder(open_checkpoint(path), "bf16")


@pytest.fixture(autouse=True)
def always_guess(monkeypatch):
    """As many guesses as there are, whatever they cost."""
    monkeypatch.setattr(Speculation, "_worth", lambda _self, _n, _kind, _costs, room: room)


def config_of(rng):
    return EngineConfig(
        deterministic=True,
        kv_cache_bytes=20_000_000,
        kv_cache_bits=rng.choice([8, 16]),
        block_size=rng.choice([4, 16]),
        max_num_batched_tokens=rng.choice([16, 64, 512]),
        max_num_seqs=rng.choice([2, 5, 64]),
        find_prefixes=rng.random() < 0.7,
        prompt_lookup=rng.random() < 0.5,
    )


def request_of(rng, decoder, shared):
    """Half begin alike, half say something twice, so that there is something to find and to guess."""
    ids = [rng.randrange(decoder.spec.vocab_size) for _ in range(rng.randrange(1, 30))]
    if rng.random() < 0.5:
        ids *= 2
    if rng.random() < 0.5:
        ids = shared + ids
    params = SamplingParams(
        max_tokens=rng.randrange(2, 12),
        temperature=rng.choice([0.0, 1.0]),
        top_p=rng.choice([1.0, 0.9]),
        seed=rng.randrange(100),
        ignore_eos=True,
        logprobs=2,
        prompt_logprobs=rng.choice([None, 1]),
        n=rng.choice([1, 1, 2]),
        repetition_penalty=rng.choice([1.0, 1.2]),
    )
    return Request(ids, params)


def seen(completion):
    return completion.token_ids, completion.text, completion.logprobs, completion.prompt_logprobs


def step(engine, done):
    """Keeps the answers that have ended, by request and choice; the engine's state holds."""
    for chunk in engine.step():
        if chunk.completion is not None:
            done[chunk.index, chunk.choice] = seen(chunk.completion)
    engine.check()


def answers(engine, number, n, done):
    """All of a request's, when there is nothing more to do."""
    while engine.has_work():
        step(engine, done)
    return [done[number, choice] for choice in range(n)]


def alone(decoder, tokenizer, request, config):
    plain = replace(config, prompt_lookup=False, max_num_batched_tokens=512, kv_cache_bytes=20_000_000)
    engine = Engine(decoder, tokenizer, plain)
    return answers(engine, engine.add(request), request.params.n, {})


@pytest.mark.parametrize("seed", range(WORKLOADS))
def test_little_memory(decoder, seed, smollm2_tokenizer):
    rng = random.Random(seed)
    shared = [rng.randrange(decoder.spec.vocab_size) for _ in range(20)]
    asked = [request_of(rng, decoder, shared) for _ in range(rng.randrange(3, 8))]
    config = config_of(rng)
    config = replace(config, kv_cache_bytes=barely(decoder, asked, config))
    engine = Engine(decoder, smollm2_tokenizer, config)
    numbers = [engine.add(request, priority=rng.randrange(2)) for request in asked]
    done = {}
    for number, request in zip(numbers, asked, strict=True):
        got = answers(engine, number, request.params.n, done)
        assert got == alone(decoder, smollm2_tokenizer, request, config)
    assert all(pool.num_free == pool.num_blocks for pool in engine.blocks.pools)


@pytest.mark.parametrize("seed", range(NEEDLES))
def test_a_needle(decoder, seed, smollm2_tokenizer):
    rng = random.Random(1000 + seed)
    shared = [rng.randrange(decoder.spec.vocab_size) for _ in range(20)]
    needle, config = request_of(rng, decoder, shared), config_of(rng)
    others = [request_of(rng, decoder, shared) for _ in range(rng.randrange(1, 9))]
    want = alone(decoder, smollm2_tokenizer, needle, config)
    if seed % 3 == 0:
        assert asyncio.run(streamed(decoder, smollm2_tokenizer, config, others, needle)) == want
        return
    engine = Engine(decoder, smollm2_tokenizer, config)
    if rng.random() < 0.5:  # so that all of it is found again
        engine.add(replace(needle, params=replace(needle.params, prompt_logprobs=None)))
    before, done = [engine.add(other) for other in others[::2]], {}
    for _ in range(rng.randrange(4)):
        step(engine, done)
    number = engine.add(needle)
    for other in others[1::2]:
        engine.add(other)
        step(engine, done)
    engine.abort(rng.choice(before))
    assert answers(engine, number, needle.params.n, done) == want


async def streamed(decoder, tokenizer, config, others, needle):
    """The needle's answers through the asynchronous front, while others come and one goes."""
    async with AsyncEngine(Engine(decoder, tokenizer, config)) as engine:

        async def listen(request, most=None):
            found = {}
            stream = engine.generate(request)
            async for chunk in stream:
                if chunk.completion is not None:
                    found[chunk.choice] = seen(chunk.completion)
                if most is not None:
                    await stream.aclose()
                    break
            return [found[choice] for choice in sorted(found)]

        tasks = [asyncio.create_task(listen(other)) for other in others]
        tasks += [asyncio.create_task(listen(others[0], most=1)), asyncio.create_task(listen(needle))]
        return (await asyncio.gather(*tasks))[-1]
