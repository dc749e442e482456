"""vLLM's CPU build on a Hugging Face folder; run by engine.py and cpu_kernels.py with the peer's own Python.

    python peer_vllm.py throughput|mixed|turns|start FOLDER

`throughput` prints one JSON line with tokens/s, prompts included, of 1, 16 and 64 equal requests of 13 and 64
tokens; `turns` answers with those or with a prompt's when it is asked for seq16 or prefill512; `mixed` prints
what the senders of the requests in arrivals.py see; `start` an empty line after the first token.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.arrivals import Arrival, poisson, serve
from benchmarks.turns import PROMPTS, TIMES, Measured, answer

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# By itself it leaves one of two processors to its scheduler, and reads prompts half as fast.
os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
PROMPT = "The key advancements in quantum computing in the last five years are"


def mixed(llm: Any, count: int, rate: float) -> dict[str, float]:
    from vllm import SamplingParams  # type: ignore[import-not-found]
    from vllm.sampling_params import RequestOutputKind  # type: ignore[import-not-found]

    engine = llm.llm_engine

    def add(number: int, arrival: Arrival) -> None:
        params = SamplingParams(
            temperature=0,
            max_tokens=arrival.answer_tokens,
            ignore_eos=True,
            output_kind=RequestOutputKind.DELTA,
        )
        engine.add_request(str(number), {"prompt_token_ids": arrival.prompt_ids}, params)

    def step() -> Iterator[tuple[int, int]]:
        for output in engine.step():
            if output.outputs[0].token_ids:
                yield int(output.request_id), len(output.outputs[0].token_ids)

    return serve(poisson(count, rate), add, step)


def equal_requests(llm: Any, count: int) -> float:
    from vllm import SamplingParams

    params, begin = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True), time.perf_counter()
    llm.generate([PROMPT] * count, params, use_tqdm=False)
    return count * 64 / (time.perf_counter() - begin)


def throughput(llm: Any) -> Measured:
    return {f"seq{n}": max(equal_requests(llm, n) for _ in range(times)) for n, times in TIMES.items()}


def prefill(llm: Any, length: int) -> float:
    from vllm import SamplingParams

    prompt = {"prompt_token_ids": [100 + i % 900 for i in range(length)]}
    begin = time.perf_counter()
    for _ in range(PROMPTS[length]):
        llm.generate([prompt], SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
    return PROMPTS[length] * length / (time.perf_counter() - begin)


def measure(llm: Any, kind: str, number: int) -> Measured:
    return {"rate": {"seq": equal_requests, "prefill": prefill}[kind](llm, number)}


def main(mode: str, folder: str, *numbers: str) -> None:
    from vllm import LLM, SamplingParams

    length = 4608 if mode == "turns" else 2048
    llm = LLM(folder, dtype="bfloat16", max_model_len=length, enable_prefix_caching=False)
    first = SamplingParams(temperature=0, max_tokens=1 if mode == "start" else 8)
    llm.generate([PROMPT], first, use_tqdm=False)
    found: Measured = {}
    if mode == "turns":
        answer(partial(measure, llm))
    elif mode == "throughput":
        found = throughput(llm)
    elif mode == "mixed":
        found = mixed(llm, int(numbers[0]), float(numbers[1]))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
