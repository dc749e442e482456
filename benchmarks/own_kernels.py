"""Paragone on a GGUF file or a folder; run by cpu_kernels.py, the twin of peer_llamacpp.py.

    python own_kernels.py speed FILE PRECISION LONGEST
    python own_kernels.py throughput FILE PRECISION

`speed` prints one JSON line: tokens/s of prompts of 512 and 4,096, up to the LONGEST, of decoding 1, 16 and
64 sequences through the engine, the most of each that the machine allowed at the time (bounds.py), the share
of the machine's reading rate that decoding uses, and what memory took at most beside weights and cache.
`throughput` is own_engine.py's, of equal requests with their prompts, with the most of each.
"""

import json
import sys
import time
from functools import partial
from typing import Any

import paragone
from benchmarks.bounds import Machine, Rates, bounds, operations
from benchmarks.own_engine import throughput
from paragone import Engine, EngineConfig, Request, SamplingParams
from paragone.engine.resources import peak_memory_bytes


def prefill(model: Any, length: int) -> float:
    prompt = [100 + i % 900 for i in range(length)]
    engine = Engine(
        model.decoder, model.tokenizer, EngineConfig(find_prefixes=False, max_num_batched_tokens=4096)
    )
    return length / engine.run([Request(prompt, SamplingParams(max_tokens=1))])[0].ttft_s


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


def speed(model: Any, longest: int) -> dict[str, float]:
    prompt = list(range(100, 612))
    model.engine_config = EngineConfig(find_prefixes=False)
    model.generate(prompt, max_tokens=64, ignore_eos=True)
    spec = model.decoder.spec
    over = peak_memory_bytes() - model.decoder.weight_bytes - spec.kv_bytes(576, 2)
    size = model.decoder.decode_bytes
    machine = Machine(size)
    figures = {f"decode{n}": (partial(decoding, model, n), 3) for n in (1, 16, 64)}
    prompts = [(n, times) for n, times in ((512, 5), (4096, 3)) if n <= longest]
    figures |= {f"prefill{n}": (partial(prefill, model, n), times) for n, times in prompts}
    out: dict[str, float] = {"weight_bytes": size, "over_bytes": over, "operations": operations(model)}
    for key, (figure, times) in figures.items():
        figure()  # memory is taken, and the caches are warm
        out[key], rates = machine.around(figure, times)
        out[f"most_{key}"] = bounds(model, rates)[key]
        if key == "decode1":
            out |= {"read_gb_per_s": rates.read / 1e9, "bandwidth_share": out[key] * size / rates.read}
    alone = {"int4_tops": rates.int4, "int8_tops": rates.int8, "bf16_tflops": rates.floats}
    return out | {name: rate / 1e12 for name, rate in alone.items()}


def equal_requests(model: Any) -> dict[str, float]:
    machine = Machine(model.decoder.decode_bytes)
    before, out, after = machine.rates(), throughput(model), machine.rates()
    most = bounds(model, Rates(*map(max, before, after)))
    return out | {f"most_{key}": most[key] for key in ("seq16", "seq64")}


def main(mode: str, path: str, precision: str, *longest: str) -> None:
    model = paragone.load(path, precision=precision)  # type: ignore[arg-type]
    model.generate("The sky is", max_tokens=8)
    print(json.dumps(speed(model, int(longest[0])) if mode == "speed" else equal_requests(model)))


if __name__ == "__main__":
    main(*sys.argv[1:])
