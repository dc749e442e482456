"""The engine without a server, in a closed loop of the requests of load_client.py; run by serve.py.

    python own_loop.py FILE PRECISION SECONDS TOKENS

Asked for a number of clients, it answers with their tokens/s (turns.py). They begin as long before the
measured seconds as those of a server, and are measured for half as long.
"""

import sys
import time
from typing import Any

import paragone
from benchmarks.load_client import Questions
from benchmarks.turns import answer
from paragone import Engine, EngineConfig, Request, SamplingParams


def rate(model: Any, clients: int, seconds: float, tokens: int) -> float:
    engine = Engine(model.decoder, model.tokenizer, EngineConfig())
    questions = Questions(clients, tokens)
    of: dict[int, int] = {}

    def ask(client: int) -> None:
        prompt, asked = questions.next(client)
        params = SamplingParams(max_tokens=asked, ignore_eos=True)
        of[engine.add(Request(model.encode(prompt), params))] = client

    for client in range(clients):
        ask(client)
    start = time.perf_counter()
    count, begin = 0, 0.0
    while (now := time.perf_counter()) < start + seconds * 3 / 5:
        if not begin and now > start + seconds / 5:
            begin, count = now, 0
        for chunk in engine.step():
            count += len(chunk.token_ids)
            if chunk.finish_reason is not None:
                ask(of.pop(chunk.index))
    return count / (time.perf_counter() - begin)


def main(path: str, precision: str, seconds: str, tokens: str) -> None:
    model = paragone.load(path, precision=precision)  # type: ignore[arg-type]
    model.generate("The sky is", max_tokens=8)
    answer(lambda _, clients: {"rate": rate(model, clients, float(seconds), int(tokens))})


if __name__ == "__main__":
    main(*sys.argv[1:])
