"""Paragone on a GGUF file or a folder; run by cpu_kernels.py, in turn with peer_llamacpp.py and peer_vllm.py.

    python own_kernels.py FILE PRECISION

Asked for prefill512 or prefill4096, decode1, decode16, decode64 (steps that only decode, through the engine)
or seq16, seq64 (equal requests with their prompts), it answers with the tokens/s and with the most of them
that the machine allowed just before or just after (bounds.py); asked for `model`, with its bytes and what
memory took at most beside weights and cache.
"""

import sys
import time
from typing import Any

import paragone
from benchmarks.bounds import DECODE_PROMPT, Machine, bounds, operations
from benchmarks.own_engine import equal_requests
from benchmarks.turns import PROMPTS, STEPS, Measured, answer
from paragone import Engine, EngineConfig, Request, SamplingParams
from paragone.engine.resources import peak_memory_bytes


def prefill(engine: Engine, length: int) -> float:
    request = Request([100 + i % 900 for i in range(length)], SamplingParams(max_tokens=1))
    count = PROMPTS[length]
    return count * length / sum(engine.run([request])[0].ttft_s for _ in range(count))


def decode(engine: Engine, sequences: int) -> float:
    """Steps that only decode, after prompts."""
    steps = STEPS[sequences]
    params = SamplingParams(max_tokens=steps + 1, ignore_eos=True)
    for s in range(sequences):
        engine.add(Request([100 + s * 7 + i for i in range(DECODE_PROMPT)], params))
    engine.step()
    while engine.stats and engine.stats.prefill_tokens:
        engine.step()
    begin, count = time.perf_counter(), 0
    while engine.has_work():
        count += sum(len(chunk.token_ids) for chunk in engine.step())
    return count / (time.perf_counter() - begin)


FIGURES = {"prefill": prefill, "decode": decode, "seq": equal_requests}


def of_the_model(model: Any) -> Measured:
    """Bytes and operations of a token, and the peak of memory, as long as nothing else has run."""
    model.engine_config = EngineConfig(find_prefixes=False)
    model.generate(list(range(100, 612)), max_tokens=64, ignore_eos=True)
    over = peak_memory_bytes() - model.decoder.weight_bytes - model.decoder.spec.kv_bytes(576, 2)
    size = model.decoder.decode_bytes
    return {"weight_bytes": size, "over_bytes": over, "operations": operations(model)}


def main(path: str, precision: str) -> None:
    model = paragone.load(path, precision=precision)  # type: ignore[arg-type]
    model.generate("The sky is", max_tokens=8)
    described = of_the_model(model)
    size = model.decoder.decode_bytes
    machine = Machine(size)

    def new_engine(step_tokens: int) -> Engine:
        config = EngineConfig(find_prefixes=False, max_num_batched_tokens=step_tokens)
        return Engine(model.decoder, model.tokenizer, config)

    # As the peers', they are there when they are measured. Long prompts are to be read in one step.
    usual, long_steps = new_engine(512), new_engine(4096)

    def measure(kind: str, number: int) -> Measured:
        if kind == "model":
            return described
        rate, rates = machine.around(
            lambda: FIGURES[kind](long_steps if kind == "prefill" else usual, number)
        )
        return {
            "rate": rate, "most": bounds(model, rates)[f"{kind}{number}"], "read": rates.read,
            "share": rate * size / rates.read, "int4": rates.int4, "int8": rates.int8, "rows": rates.rows,
            "bf16": rates.floats,
        }  # fmt: skip

    answer(measure)


if __name__ == "__main__":
    main(*sys.argv[1:])
