"""vLLM's CPU build on a Hugging Face folder; run by engine.py with the peer's own Python.

    python peer_vllm.py throughput FOLDER

Prints one JSON line with tokens/s, prompts included, of 16 and 64 equal requests of 13 and 64 tokens.
"""

import json
import os
import sys
import time

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
PROMPT = "The key advancements in quantum computing in the last five years are"


def main(folder: str) -> None:
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    llm = LLM(folder, dtype="bfloat16", max_model_len=2048, enable_prefix_caching=False)
    params, out = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True), {}
    llm.generate([PROMPT], params, use_tqdm=False)
    for count in (1, 16, 64):
        runs = []
        for _ in range(3 if count > 1 else 2):
            begin = time.perf_counter()
            llm.generate([PROMPT] * count, params, use_tqdm=False)
            runs.append(count * 64 / (time.perf_counter() - begin))
        out[f"seq{count}"] = max(runs)
    print(json.dumps(out), flush=True)


if __name__ == "__main__":
    main(sys.argv[2])
