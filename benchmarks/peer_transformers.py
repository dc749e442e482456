"""transformers on a Hugging Face folder; run by foundation.py with the peer's own Python.

    python peer_transformers.py speed|start FOLDER

`start` ends with the first token of a short prompt, and does nothing else; `speed` prints one JSON line
with decode and prefill tokens/s. Greedy, bfloat16, one sequence, default attention.
"""

import json
import sys
import time
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.disable_progress_bar()
mode, folder = sys.argv[1:3]
tokenizer = AutoTokenizer.from_pretrained(folder)
model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


def generate(ids: torch.Tensor, tokens: int) -> float:
    begin = time.perf_counter()
    model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return time.perf_counter() - begin


if mode == "start":
    generate(tokenizer("The sky is", return_tensors="pt").input_ids, 1)
    print("first token", flush=True)
else:
    short, long = torch.arange(100, 116)[None], torch.arange(100, 612)[None]
    generate(short, 16)
    generate(long, 1)
    decode = median(64 / (generate(short, 65) - generate(short, 1)) for _ in range(5))
    prefill = median(512 / generate(long, 1) for _ in range(5))
    print(json.dumps({"decode": decode, "prefill": prefill}))
