"""Many requests at once beside vLLM's CPU build and transformers' continuous batching; ends in one JSON line.

    python -m benchmarks.engine [ROUNDS]

SmolLM2-135M in bfloat16, all threads. In every round each engine runs in a process of its own, in turn;
ratios are medians over rounds. The last line also says what Paragone's parts gain or cost, measured against
itself.
"""

import json
import sys
from pathlib import Path
from statistics import median

from benchmarks.foundation import exported, run
from benchmarks.peers import interpreter


def main(rounds: int) -> None:
    folder = exported()
    engines: dict[str, tuple[Path | str, str]] = {
        "Paragone": (sys.executable, "own_engine.py"),
        "vLLM": (interpreter("vllm"), "peer_vllm.py"),
        "transformers": (interpreter("transformers"), "peer_batch.py"),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    for number in range(rounds):
        for name, (python, script) in engines.items():
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
            found[name].append(json.loads(run(python, script, "throughput", folder)[1]))
    parts = json.loads(run(sys.executable, "own_engine.py", "features", folder)[1])
    keys = ("seq1", "seq16", "seq64")
    print(f"{'tokens/s':16}" + "".join(f"{key.removeprefix('seq') + ' at once':>14}" for key in keys))
    for name, measured in found.items():
        row = (median(m[key] for m in measured) if key in measured[0] else None for key in keys)
        print(f"{name:16}" + "".join(f"{'-' if v is None else f'{v:.0f}':>14}" for v in row))

    def ratio(key: str, peer: str) -> float:
        pairs = zip(found["Paragone"], found[peer], strict=True)
        return round(median(own[key] / other[key] for own, other in pairs), 2)

    print(f"guesses by prompt lookup that were right: {parts.pop('lookup_right'):.0%}")
    line = {
        "seq16_vs_vllm": ratio("seq16", "vLLM"),
        "seq64_vs_vllm": ratio("seq64", "vLLM"),
        "seq16_vs_transformers": ratio("seq16", "transformers"),
    }
    print(json.dumps(line | {key: round(value, 3) for key, value in parts.items()}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
