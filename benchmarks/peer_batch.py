"""transformers' continuous batching on a Hugging Face folder; run by engine.py with the peer's own Python.

    python peer_batch.py throughput FOLDER

Prints one JSON line with tokens/s, prompts included, of 16 equal requests of 13 and 64 tokens.
"""

import json
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

PROMPT = "The key advancements in quantum computing in the last five years are"


def main(folder: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    ids = tokenizer(PROMPT).input_ids
    settings = GenerationConfig(max_new_tokens=64, do_sample=False, eos_token_id=-1, pad_token_id=0)  # type: ignore[no-untyped-call]
    out = {}
    for count in (1, 16):
        runs = []
        for _ in range(2):
            begin = time.perf_counter()
            done = model.generate_batch(inputs=[ids] * count, generation_config=settings)
            spent = time.perf_counter() - begin
            runs.append(sum(len(answer.generated_tokens) for answer in done.values()) / spent)
        out[f"seq{count}"] = max(runs)
    print(json.dumps(out), flush=True)


if __name__ == "__main__":
    main(sys.argv[2])
