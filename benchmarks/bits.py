"""Bits per byte of the bundled texts, on the same file and the same tokens: by the kernels, by PyTorch with
the same weights in float32, and by llama.cpp. Ends in one JSON line: the largest differences.

    python -m benchmarks.bits [--write]
"""

import json
import math
import sys
import tempfile

import click
import torch

import paragone
from benchmarks.cpu_kernels import INT8, files
from benchmarks.engine import PAGE, table, write_section
from benchmarks.foundation import run
from benchmarks.peers import interpreter
from paragone.compare.measure import bundled_texts
from paragone.compare.quality import windows_of
from paragone.engine.model import Model
from paragone.engine.resources import describe_machine

NAMES = ("Q4_0", "Q8_0", INT8, "Gemma 3 270M Q4_K_M")


def bits(model: Model, windows: list[list[int]]) -> float:
    """Bits of all tokens but the first of each window."""
    return sum(-sum(model.logprobs(ids)) / math.log(2) for ids in windows)


@click.command()
@click.option("--write", is_flag=True)
def main(write: bool) -> None:
    rows, against = [], {"fp32": 0.0, "llama.cpp": 0.0}
    for name in NAMES:
        print(name, file=sys.stderr)
        path, precision, its_path = files()[name]
        model = paragone.load(str(path), precision=precision)
        windows = [ids for text in bundled_texts().values() for ids in windows_of(model, text)]
        size = sum(len(model.tokenizer.token_bytes(t)) for ids in windows for t in ids[1:])
        own = bits(model, windows)
        with torch.inference_mode():
            wide = bits(paragone.load(str(path), precision="fp32"), windows)
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(windows, file)
            file.flush()
            peer = json.loads(
                run(interpreter("llamacpp"), "peer_llamacpp.py", "bits", its_path, file.name)[1]
            )
        against["fp32"] = max(against["fp32"], abs(own / wide - 1))
        against["llama.cpp"] = max(against["llama.cpp"], abs(own / peer - 1))
        rows.append([name, *(f"{value / size:.5f}" for value in (own, wide, peer))])
    here = describe_machine()
    lines = [
        f"{here['cpu']}, kernels {here['kernels']}. On the same file and the same tokens; in float32 the",
        "same weights, dequantised; int8 is Paragone's own, of weights in bfloat16, which float32 has as",
        "they are, and stands beside llama.cpp's Q8_0.",
        "",
        *table(["bits per byte", "kernels", "float32", "llama.cpp"], rows),
    ]
    print("\n".join(lines))
    if write:
        write_section(PAGE, "Bits per byte", lines)
    print(json.dumps({f"vs_{key}": round(value, 5) for key, value in against.items()}))


if __name__ == "__main__":
    main()
