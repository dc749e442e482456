"""Paragone on a Hugging Face folder; run by foundation.py, the twin of peer_transformers.py.

python own.py speed|start FOLDER
"""

import json
import sys
from statistics import median

import paragone

mode, folder = sys.argv[1:3]


def main() -> None:
    """Measures through the same calls that users make."""
    model = paragone.load(folder)
    if mode == "start":
        model.generate("The sky is", max_tokens=1)
        print("first token", flush=True)
        return
    from paragone.engine.resources import peak_memory_bytes

    # The same prompts are measured again and again: nothing of them may be found in the cache.
    model.engine_config = paragone.EngineConfig(find_prefixes=False)
    short, long = list(range(100, 116)), list(range(100, 612))
    model.generate(short, max_tokens=16, ignore_eos=True)
    model.generate(long, max_tokens=1, ignore_eos=True)
    runs = [model.generate(short, max_tokens=65, ignore_eos=True) for _ in range(5)]
    decode = median(run.decode_tokens_per_s for run in runs)
    prefill = median(512 / model.generate(long, max_tokens=1, ignore_eos=True).ttft_s for _ in range(5))
    cache = model.decoder.new_cache(1, 512 + 64).reserved_bytes
    over = peak_memory_bytes() - model.decoder.weight_bytes - cache
    print(json.dumps({"decode": decode, "prefill": prefill, "over_mb": over / 1e6}))


main()
