"""Paragone's engine on a Hugging Face folder; run by engine.py, the twin of peer_vllm.py and peer_batch.py.

    python own_engine.py throughput|features FOLDER
    python own_engine.py mixed FOLDER COUNT RATE

`throughput` prints one JSON line with tokens/s, prompts included, of 1, 16 and 64 equal requests of 13 and 64
tokens; `features` one with what the engine's parts gain or cost; `mixed` one with what the senders of the
requests in arrivals.py see.
"""

import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from typing import Any

import paragone
from benchmarks.arrivals import Arrival, poisson, serve
from benchmarks.turns import TIMES
from paragone import Engine, EngineConfig, Request, SamplingParams
from paragone.engine.selftest import price

PROMPT = "The key advancements in quantum computing in the last five years are"
EDIT = """Rewrite the following text and change nothing but the name of the day:

The ferry was late again on Thursday. The captain said that the fog had come down over the harbour before
six, and that nobody could see the lamps at the end of the pier. Two of the passengers had walked to the
station instead, and the others sat in the waiting room with their coats on. At nine the fog lifted, and the
ferry left with all of them on board. The captain said that the fog had come down over the harbour before six,
and that nobody was to blame."""


def equal_requests(engine: Engine, count: int) -> float:
    params = SamplingParams(max_tokens=64, ignore_eos=True)
    ids, begin = engine.tokenizer.encode(PROMPT, prefix=True), time.perf_counter()
    engine.run([Request(ids, params)] * count)
    return count * 64 / (time.perf_counter() - begin)


def throughput(model: Any) -> dict[str, float]:
    engine = Engine(model.decoder, model.tokenizer, EngineConfig(find_prefixes=False))
    return {f"seq{n}": max(equal_requests(engine, n) for _ in range(times)) for n, times in TIMES.items()}


def mixed(model: Any, count: int, rate: float) -> dict[str, float]:
    engine = Engine(model.decoder, model.tokenizer)

    def add(_: int, arrival: Arrival) -> None:
        engine.add(
            Request(arrival.prompt_ids, SamplingParams(max_tokens=arrival.answer_tokens, ignore_eos=True))
        )

    def step() -> Iterator[tuple[int, int]]:
        for chunk in engine.step():
            if chunk.finish_reason == "error":
                sys.exit("a request has failed")
            yield chunk.index, len(chunk.token_ids)

    return serve(poisson(count, rate), add, step)


def prefix_hit(model: Any) -> float:
    """Time to first token of 1,000 shared tokens and 16 of one's own: computed, over found."""
    rng = random.Random(0)
    gains = []
    for _ in range(5):
        engine = Engine(model.decoder, model.tokenizer)
        shared = [rng.randrange(5, 40000) for _ in range(1000)]
        requests = [
            Request(shared + [rng.randrange(5, 40000) for _ in range(16)], SamplingParams(max_tokens=1))
            for _ in range(2)
        ]
        cold, warm = (engine.run([request])[0].ttft_s for request in requests)
        gains.append(cold / warm)
    return median(gains)


def scheduling(model: Any) -> float:
    """Share of a step at 64 sequences that is neither the decoder nor choosing tokens."""
    engine, shares = Engine(model.decoder, model.tokenizer), []
    for n in range(64):
        engine.add(Request([100 + n] * 13, SamplingParams(max_tokens=64, ignore_eos=True)))
    while engine.has_work():
        begin = time.perf_counter()
        engine.step()
        whole, stats = time.perf_counter() - begin, engine.stats
        assert stats is not None
        shares.append(1 - (stats.compute_s + stats.sample_s) / whole)
    return median(shares)


def lookup(model: Any) -> tuple[float, float]:
    """Decode speed with guesses over without, the same greedy answer; and the share of right guesses."""
    ratios, rate = [], 0.0
    for _ in range(3):
        answers = [
            replace(model, engine_config=EngineConfig(prompt_lookup=guess)).chat(EDIT, max_tokens=120)
            for guess in (False, True)
        ]
        assert answers[0].token_ids == answers[1].token_ids, "guesses have changed the answer"
        ratios.append(answers[1].decode_tokens_per_s / answers[0].decode_tokens_per_s)
        rate = answers[1].accepted_tokens / max(1, answers[1].guessed_tokens)
    return median(ratios), rate


def main(mode: str, folder: str, *numbers: str) -> None:
    model = paragone.load(folder)
    model.generate(PROMPT, max_tokens=8)
    if mode == "throughput":
        print(json.dumps(throughput(model)))
        return
    if mode == "mixed":
        print(json.dumps(mixed(model, int(numbers[0]), float(numbers[1]))))
        return
    chat = paragone.load("smollm2-135m-instruct")
    gain, rate = lookup(chat)
    found = {
        "prefix_hit_ttft_gain": prefix_hit(model),
        "scheduling_share": scheduling(model),
        "lookup_gain": gain,
        "lookup_right": rate,
        "deterministic_price": price(model),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
