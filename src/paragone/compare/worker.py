"""One candidate, one task, one process: run by `measure.py` as `python -m paragone.compare.worker`.

Reads its task as one JSON line from standard input and writes events as JSON lines: progress, then the
result or an error. Nothing else runs in the process, so its peak memory is the candidate's.
"""

import json
import os
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from paragone.errors import NotEnoughMemory, ParagoneError


def emit(event: str, **values: Any) -> None:
    """One line to the parent."""
    sys.stdout.write(json.dumps({"event": event, **values}) + "\n")
    sys.stdout.flush()


def load(task: dict[str, Any]) -> Any:
    """The candidate's model, with the thread count that was asked for."""
    from paragone.engine.load import load_model
    from paragone.ops.threads import set_threads

    if task.get("threads"):
        set_threads(task["threads"])
    return load_model(Path(task["path"]), task["model"], task["precision"], task.get("device", "cpu"))


def speed(task: dict[str, Any]) -> dict[str, Any]:
    """Load time, start-up, prefill and decode speeds, memory. Decoding continues the prefilled prompt."""

    import paragone.engine.model  # noqa: F401 -- importing is part of starting, not of loading
    from paragone.engine.config import EngineConfig
    from paragone.engine.resources import peak_memory_bytes
    from paragone.ops.threads import threads

    started = time.perf_counter()
    model = load(task)
    load_s = time.perf_counter() - started

    # As the user will run it, but every repetition computes the whole prompt.
    model.engine_config = EngineConfig(max_num_seqs=1, find_prefixes=False)
    ids = _prompt_ids(model, task["text"], task["prompt_tokens"])
    _measure(model, ids[:8], 0)
    start_s = time.monotonic() - task["spawned"]  # one clock for all processes of the machine
    _measure(model, ids[:64], 4)  # warms caches up and is not counted
    runs = [_measure(model, ids, task["decode_tokens"]) for _ in range(task["repetitions"])]
    return {
        "load_s": load_s,
        "start_s": start_s,
        "runs": runs,
        "prompt_tokens": len(ids),
        "peak_memory_bytes": peak_memory_bytes(),
        "weight_bytes": model.decoder.weight_bytes,
        "decode_bytes": model.decoder.decode_bytes,
        "cache_bytes": max(run["cache_bytes"] for run in runs),
        "threads": threads(),
    }


def _measure(model: Any, ids: list[int], decode_tokens: int) -> dict[str, Any]:
    """One prompt and what is decoded after it, greedily: seconds to the first token and between the rest."""
    begin = time.perf_counter()
    run = model.start([ids], max_tokens=decode_tokens + 1, ignore_eos=True)
    times, cache_bytes = [], 0
    for _ in run:
        times.append(time.perf_counter())
        cache_bytes = max(cache_bytes, model.engine.cache_bytes)
    run.check()
    gaps = [b - a for a, b in pairwise(times)]
    return {
        "ttft_s": times[0] - begin,
        "token_s": gaps,
        "total_s": times[-1] - begin,
        "cache_bytes": cache_bytes,
    }


def _prompt_ids(model: Any, text: str, count: int) -> list[int]:
    """`count` tokens of a text, repeated as often as it takes."""
    ids = model.encode(text)
    body = ids[len(model.tokenizer.prefix) :] or [0]
    while len(ids) < count:
        ids = ids + body
    return ids[:count]  # type: ignore[no-any-return]


def quality(task: dict[str, Any]) -> dict[str, Any]:
    """Bits per byte of each text; against a reference's log-probabilities, KL divergence and agreement."""
    from paragone.compare.quality import measure_quality

    model = load(task)
    reference = Path(task["reference"]) if task.get("reference") else None
    return measure_quality(
        model,
        task["texts"],
        reference,
        task["is_reference"],
        lambda d, t: emit("progress", done=d, total=t),
    )


def answers(task: dict[str, Any]) -> dict[str, Any]:
    """The model's greedy answer to each prompt, by its chat template where it has one."""
    model = load(task)
    out = []
    for n, prompt in enumerate(task["prompts"], 1):
        try:
            if model.tokenizer.chat_template is not None:
                completion = model.chat(prompt, max_tokens=task["max_tokens"])
            else:
                completion = model.generate(prompt, max_tokens=task["max_tokens"])
        except ParagoneError as err:  # one prompt that does not fit must not cost the others
            out.append({"text": f"[no answer: {err}]", "finish_reason": "error", "tokens": 0, "total_s": 0.0})
            continue
        out.append(
            {
                "text": completion.text,
                "finish_reason": completion.finish_reason,
                "prompt_tokens": completion.prompt_tokens,
                "tokens": len(completion.token_ids),
                "ttft_s": completion.ttft_s,
                "total_s": completion.total_s,
            }
        )
        emit("progress", done=n, total=len(task["prompts"]))
    return {"answers": out}


def _end_with_parent() -> None:
    """Ends the process when standard input closes: the parent has gone, and nobody will read the result."""
    sys.stdin.read()
    os._exit(0)


def main() -> None:
    """Runs the task that standard input names."""
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        emit("result", **{"speed": speed, "quality": quality, "answers": answers}[task["task"]](task))
    except ParagoneError as err:
        emit("error", message=str(err), exit_code=err.exit_code)
    except MemoryError:
        emit("error", message="ran out of memory", exit_code=NotEnoughMemory.exit_code)
    except RuntimeError as err:  # torch's allocator and kernels
        reason = " ".join(str(err).split())[:200]
        code = NotEnoughMemory.exit_code if "memory" in reason.lower() else ParagoneError.exit_code
        emit("error", message=reason, exit_code=code)


if __name__ == "__main__":
    main()
