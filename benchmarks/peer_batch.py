"""transformers on a Hugging Face folder, batched; run by engine.py with the peer's own Python.

    python peer_batch.py throughput FOLDER

Prints one JSON line with tokens/s, prompts included, of 1 and 16 equal requests of 13 and 64 tokens: the
better of its continuous batching and of `generate` on one batch whose members start and end together.
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
    settings = GenerationConfig(max_new_tokens=64, do_sample=False, eos_token_id=-1, pad_token_id=0)

    def continuous(count: int) -> int:
        done = model.generate_batch(inputs=[ids] * count, generation_config=settings)
        return sum(len(answer.generated_tokens) for answer in done.values())

    def at_once(count: int) -> int:
        batch = torch.tensor([ids] * count)
        return model.generate(batch, generation_config=settings)[:, len(ids) :].numel()  # type: ignore[no-any-return]

    out: dict[str, float] = {}
    for count in (1, 16):
        for way in (continuous, at_once):
            for _ in range(2):
                begin = time.perf_counter()
                made = way(count)
                out[f"{way.__name__}{count}"] = max(
                    made / (time.perf_counter() - begin), out.get(f"{way.__name__}{count}", 0)
                )
        out[f"seq{count}"] = max(out[f"continuous{count}"], out[f"at_once{count}"])
    print(json.dumps(out), flush=True)


if __name__ == "__main__":
    main(sys.argv[2])
