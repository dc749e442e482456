"""Paragone on a GGUF file or a folder; run by cpu_kernels.py, the twin of peer_llamacpp.py.

    python own_kernels.py speed|throughput FILE PRECISION

`speed` prints one JSON line: tokens/s of prompts of 512 and 4,096, of decoding 1, 16 and 64 sequences through
the engine, the most of each that the machine allows (bounds.py), the share of the machine's reading rate
that decoding uses, and what memory took at most beside weights and cache. `throughput` is own_engine.py's, of
equal requests with their prompts.
"""

import json
import sys
import time
from statistics import median
from typing import Any

import torch

import paragone
from benchmarks.bounds import bounds
from benchmarks.own_engine import throughput
from paragone import Engine, EngineConfig, Request, SamplingParams
from paragone.engine.resources import peak_memory_bytes
from paragone.kernels import native
from paragone.ops import pages
from paragone.ops.threads import threads


def prefill(model: Any, length: int) -> float:
    prompt = [100 + i % 900 for i in range(length)]
    rates = []
    for _ in range(5):
        engine = Engine(
            model.decoder, model.tokenizer, EngineConfig(find_prefixes=False, max_num_batched_tokens=4096)
        )
        rates.append(length / engine.run([Request(prompt, SamplingParams(max_tokens=1))])[0].ttft_s)
    return median(rates[1:])


def decoding(model: Any, sequences: int) -> float:
    """Steps that only decode, after prompts of 16."""
    engine = Engine(model.decoder, model.tokenizer, EngineConfig(find_prefixes=False))
    steps = 128 if sequences == 1 else 48
    params = SamplingParams(max_tokens=steps + 1, ignore_eos=True)
    for s in range(sequences):
        engine.add(Request([100 + s * 7 + i for i in range(16)], params))
    while engine.stats is None or engine.stats.prefill_tokens:
        engine.step()
    begin, count = time.perf_counter(), 0
    while engine.has_work():
        count += sum(len(chunk.token_ids) for chunk in engine.step())
    return count / (time.perf_counter() - begin)


def speed(model: Any) -> dict[str, float]:
    prompt = list(range(100, 612))
    model.engine_config = EngineConfig(find_prefixes=False)
    model.generate(prompt, max_tokens=64, ignore_eos=True)
    spec = model.decoder.spec
    over = peak_memory_bytes() - model.decoder.weight_bytes - spec.kv_bytes(576, 2)
    out = {f"decode{n}": median(decoding(model, n) for _ in range(3)) for n in (1, 16, 64)}
    out |= {f"prefill{n}": prefill(model, n) for n in (512, 4096)}
    size = model.decoder.decode_bytes
    memory = pages.empty((size,), torch.uint8).fill_(1)
    rate = median(native.read_rate(memory.data_ptr(), size, threads()) for _ in range(9))
    integers, floats = (native.multiply_rate(kind, threads()) for kind in (True, False))
    most = {f"most_{key}": value for key, value in bounds(model, rate, integers, floats).items()}
    return (
        out
        | most
        | {
            "bandwidth_share": out["decode1"] * size / rate,
            "read_gb_per_s": rate / 1e9,
            "weight_bytes": size,
            "over_bytes": over,
            "int8_tops": integers / 1e12,
            "bf16_tflops": floats / 1e12,
        }
    )


def main(mode: str, path: str, precision: str) -> None:
    model = paragone.load(path, precision=precision)  # type: ignore[arg-type]
    model.generate("The sky is", max_tokens=8)
    print(json.dumps(speed(model) if mode == "speed" else throughput(model)))


if __name__ == "__main__":
    main(*sys.argv[1:])
