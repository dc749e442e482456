"""vLLM's CPU build on a Hugging Face folder; run by engine.py with the peer's own Python.

    python peer_vllm.py throughput|mixed|kernels|start FOLDER

`throughput` prints one JSON line with tokens/s, prompts included, of 1, 16 and 64 equal requests of 13 and 64
tokens; `kernels` one with those and of prompts of 512 and 4,096; `mixed` one with what the senders of the
requests in arrivals.py see; `start` an empty one after the first token.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.arrivals import Arrival, poisson, serve

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


def throughput(llm: Any) -> dict[str, float]:
    from vllm import SamplingParams

    params, out = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True), {}
    for count in (1, 16, 64):
        runs = []
        for _ in range(3 if count > 1 else 2):
            begin = time.perf_counter()
            llm.generate([PROMPT] * count, params, use_tqdm=False)
            runs.append(count * 64 / (time.perf_counter() - begin))
        out[f"seq{count}"] = max(runs)
    return out


def prefill(llm: Any) -> dict[str, float]:
    from vllm import SamplingParams

    params, out = SamplingParams(temperature=0, max_tokens=1), {}
    for length, times in ((512, 4), (4096, 3)):
        prompt, best = {"prompt_token_ids": [100 + i % 900 for i in range(length)]}, 0.0
        for _ in range(times):
            begin = time.perf_counter()
            llm.generate([prompt], params, use_tqdm=False)
            best = max(best, length / (time.perf_counter() - begin))
        out[f"prefill{length}"] = best
    return out


def main(mode: str, folder: str, *numbers: str) -> None:
    from vllm import LLM, SamplingParams

    length = 4608 if mode == "kernels" else 2048
    llm = LLM(folder, dtype="bfloat16", max_model_len=length, enable_prefix_caching=False)
    first = SamplingParams(temperature=0, max_tokens=1 if mode == "start" else 8)
    llm.generate([PROMPT], first, use_tqdm=False)
    found: dict[str, float] = {}
    if mode == "kernels":
        found = throughput(llm) | prefill(llm)
    elif mode == "throughput":
        found = throughput(llm)
    elif mode == "mixed":
        found = mixed(llm, int(numbers[0]), float(numbers[1]))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
