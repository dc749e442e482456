"""Proves on the user's machine what is promised of an engine."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from paragone.engine.config import EngineConfig
from paragone.engine.engine import Engine
from paragone.engine.model import Model
from paragone.engine.params import SamplingParams
from paragone.engine.request import Completion, Request
from paragone.errors import ParagoneError
from paragone.model.paged import block_bytes, reaches_of
from paragone.ops.threads import threads, with_threads

STRICT = EngineConfig(deterministic=True)
ROUNDS = 3
ANSWER = 28  # tokens: some blocks more than a prompt takes, or nobody would have to make way


@dataclass(frozen=True)
class Finding:
    """What was done to the requests, and how many of their answers were the same to the bit as alone."""

    what: str
    same: int
    answers: int


def workload(model: Model, count: int = 8, seed: int = 0) -> list[Request]:
    """Prompts of 8 to 180 tokens, half of them with the same beginning, half greedy, some that repeat."""
    rng = random.Random(seed)  # noqa: S311 -- a workload, no secret
    vocabulary = model.decoder.spec.vocab_size
    longest = min(180, model.context // 2)
    shared = [rng.randrange(vocabulary) for _ in range(longest // 3)]
    out = []
    for n in range(count):
        own = [rng.randrange(vocabulary) for _ in range(rng.randrange(8, longest - len(shared)))]
        own = own[: len(own) // 2] * 2 if n % 3 == 0 else own
        params = SamplingParams(
            max_tokens=ANSWER, temperature=(0.0, 0.8)[n % 2], top_p=0.95, seed=n, ignore_eos=True, logprobs=4
        )
        out.append(Request((shared if n % 4 < 2 else []) + own, params))
    return out


def determinism(model: Model) -> Iterator[Finding]:
    """Everything that must not change an answer in the deterministic mode, one after another."""
    asked = workload(model)
    alone = [_run(model, STRICT, [request])[0] for request in asked]

    def compare(what: str, got: list[Completion]) -> Finding:
        same = sum(_seen(a) == _seen(b) for a, b in zip(got, alone, strict=True))
        return Finding(what, same, len(asked))

    yield compare("all at once", _run(model, STRICT, asked))
    yield compare("in the opposite order", _run(model, STRICT, asked[::-1])[::-1])
    yield compare("prompts in chunks of 7", _run(model, replace(STRICT, max_num_batched_tokens=7), asked))
    again = _run(model, STRICT, [*asked, *asked])[len(asked) :]
    found = sum(completion.cached_tokens for completion in again)
    yield compare(f"beginnings found in the cache: {found} tokens", again)
    engine = Engine(model.decoder, model.tokenizer, replace(STRICT, kv_cache_bytes=_little(model, asked)))
    preempted = _finish(engine, asked)
    yield compare(f"preempted {engine.scheduler.num_preemptions} times", preempted)
    guessing = _run(model, replace(STRICT, prompt_lookup=True), asked)
    guessed = sum(completion.guessed_tokens for completion in guessing)
    yield compare(f"with {guessed} guesses from the prompt", guessing)
    yield compare("joining one by one", _staggered(model, asked))
    with with_threads(1 if threads() > 1 else 2):
        yield compare(f"on {threads()} thread(s)", _run(model, STRICT, asked))


def price(model: Model) -> float:
    """How many times as long the same work takes in the deterministic mode: 16 prompts of 128 tokens with 32
    tokens of answer, in turn, medians."""
    rng = random.Random(1)  # noqa: S311
    params = SamplingParams(max_tokens=32, ignore_eos=True)
    asked = [
        Request([rng.randrange(model.decoder.spec.vocab_size) for _ in range(128)], params) for _ in range(16)
    ]
    spent: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for strict, times in spent.items():
            begin = time.perf_counter()
            _run(model, EngineConfig(deterministic=strict), asked)
            times.append(time.perf_counter() - begin)
    return sorted(spent[True])[ROUNDS // 2] / sorted(spent[False])[ROUNDS // 2]


def _seen(completion: Completion) -> tuple[Any, Any]:
    return completion.token_ids, completion.logprobs


def _run(model: Model, config: EngineConfig, asked: list[Request]) -> list[Completion]:
    return _finish(Engine(model.decoder, model.tokenizer, config), asked)


def _finish(engine: Engine, asked: list[Request]) -> list[Completion]:
    """All answers; raises ParagoneError where there is none, or all would be alike for the wrong reason."""
    return [_whole(done) for done in engine.run(asked)]


def _whole(completion: Completion) -> Completion:
    if completion.error is not None:
        raise ParagoneError(f"an answer broke off: {completion.error}")
    return completion


def _staggered(model: Model, asked: list[Request]) -> list[Completion]:
    """A new request every second step, and a neighbour that is aborted in between."""
    engine = Engine(model.decoder, model.tokenizer, STRICT)
    waiting, disturbing = list(enumerate(asked)), -1
    places: dict[int, int] = {}
    done: dict[int, Completion] = {}
    while len(done) < len(asked):
        if waiting:
            place, request = waiting.pop(0)
            places[engine.add(request)] = place
            engine.abort(disturbing)
            disturbing = engine.add(asked[-1])
        for chunk in [*engine.step(), *engine.step()]:
            if chunk.completion is not None and chunk.index in places:
                done[places[chunk.index]] = _whole(chunk.completion)
    return [done[place] for place in range(len(asked))]


def _little(model: Model, asked: list[Request]) -> int:
    """Memory for one and a half of the longest request."""
    spec, size = model.decoder.spec, STRICT.block_size
    longest = max(len(request.prompt_ids) for request in asked) + ANSWER
    blocks = int(1.5 * longest / size) + 2
    return blocks * sum(block_bytes(spec, reach, size, model.decoder.dtype) for reach in reaches_of(spec))
