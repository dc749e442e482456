"""The parity of every family and the mistakes that its test sees: `python -m tests.parity.table [--write]`.

Prints two tables and ends in one JSON line; with --write they become docs/parity.md as well.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch

from tests.parity.mutations import MUTATIONS, differences
from tests.tiny import CASES

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"
TOLERANCE = 2e-5
INTRODUCTION = f"""# Parity with the reference implementations

Made by `make parity`. Tiny random models of every family, every parameter random, vectors included; 48 tokens,
float32; the largest difference of any logit from transformers' class, over the standard deviation of the
logits. The tests allow {TOLERANCE:g} and also cover padding, offsets, caches, chunks, bfloat16 and GGUF.

"""


@torch.inference_mode()
def main() -> None:
    right, seen = {}, {}
    for case in CASES:
        print(case.name, file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            found = differences(case, Path(folder))
        right[case.name] = found.pop("")
        for name, size in found.items():
            seen.setdefault(name, {})[case.name] = size
    lines = ["| model | largest difference |", "|---|---|"]
    lines += [f"| {name} | {size:.1e} |" for name, size in right.items()]
    lines += [
        "",
        "## Mistakes put in on purpose",
        "",
        "How far each moves the logits of the families that it concerns,",
    ]
    lines += [
        "in the same measure. All must be beyond the tolerance.",
        "",
        "| mistake | moves | least |",
        "|---|---|---|",
    ]
    for mutation in MUTATIONS:
        cases = seen[mutation.name]
        names = ", ".join(f"{name} {size:.0e}" for name, size in cases.items())
        lines.append(f"| {mutation.name} | {names} | {min(cases.values()):.1e} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if "--write" in sys.argv[1:]:
        PAGE.write_text(INTRODUCTION + text)
    sizes = [size for cases in seen.values() for size in cases.values()]
    summary = {
        "families": len(CASES),
        "worst_diff_over_std": float(f"{max(right.values()):.2g}"),
        "mutations": len(sizes),
        "caught": sum(size > TOLERANCE for size in sizes),
    }
    print(json.dumps(summary))


main()
