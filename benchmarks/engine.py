"""Many requests at once beside vLLM's CPU build and transformers; ends in one JSON line.

    python -m benchmarks.engine [--rounds 3] [--requests 200] [--rate 1.5] [--write]

SmolLM2-135M in bfloat16, all threads, every engine in a process of its own, in turn. First equal requests, 1,
16 and 64 at once, in several rounds: ratios are made round by round, and their medians count. Then the
requests of arrivals.py, once: what their senders see. The last line also says what Paragone's parts gain or
cost, measured against itself. With --write the tables become docs/performance.md.
"""

import json
import platform
import sys
from pathlib import Path
from statistics import median

import click

from benchmarks.arrivals import ANSWERS, PROMPTS
from benchmarks.foundation import exported, run
from benchmarks.peers import interpreter
from paragone.engine.resources import describe_machine

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
Measured = dict[str, float]
COLUMNS = {
    "tokens/s": ("tokens_per_s", 1, ".0f"),
    **{f"first token {p}, s": (f"first_{p}_s", 1, ".2f") for p in ("p50", "p95", "p99")},
    **{f"between tokens {p}, ms": (f"gap_{p}_s", 1000, ".0f") for p in ("p50", "p95", "p99")},
}


def throughput(engines: dict[str, tuple[Path | str, str]], rounds: int) -> dict[str, list[Measured]]:
    """Each engine's tokens/s, round by round."""
    found: dict[str, list[Measured]] = {name: [] for name in engines}
    for number in range(rounds):
        for name, (python, script) in engines.items():
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
            found[name].append(json.loads(run(python, script, "throughput", exported())[1]))
    return found


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def processor() -> str:
    """Vendor and family: by these cores are known where a virtual machine does not name them."""
    info = Path("/proc/cpuinfo")
    lines = [line.partition(":") for line in info.read_text().splitlines()] if info.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in lines}
    vendor = fields.get("vendor_id", platform.machine()).removeprefix("Genuine").removeprefix("Authentic")
    return f"{vendor} family {fields['cpu family']}" if "cpu family" in fields else vendor


def write_section(page: Path, title: str, lines: list[str]) -> None:
    """Puts a section into the page in place of the one of the same title."""
    parts = page.read_text().split("\n## ")[1:] if page.exists() else []
    kept = {part.partition("\n")[0]: part.partition("\n")[2].strip() for part in parts}
    kept[title] = "\n".join(lines)
    page.write_text(
        "# Performance\n\n"
        + "\n\n".join(f"## {name}\n\n{text}" for name, text in sorted(kept.items()))
        + "\n"
    )


def at_once(found: dict[str, list[Measured]]) -> list[str]:
    counts = ("1", "16", "64")
    rows = [
        [name, *(f"{median(m[f'seq{n}'] for m in each):.0f}" if f"seq{n}" in each[0] else "" for n in counts)]
        for name, each in found.items()
    ]
    return table(["tokens/s", *(f"{n} at once" for n in counts)], rows)


@click.command()
@click.option("--rounds", default=3)
@click.option("--requests", default=200)
@click.option("--rate", default=1.5)
@click.option("--write", is_flag=True)
def main(rounds: int, requests: int, rate: float, write: bool) -> None:
    engines: dict[str, tuple[Path | str, str]] = {
        "Paragone": (sys.executable, "own_engine.py"),
        "vLLM": (interpreter("vllm"), "peer_vllm.py"),
        "transformers": (interpreter("transformers"), "peer_batch.py"),
    }
    found = throughput(engines, rounds)
    mixed: dict[str, Measured] = {}
    for name in ("Paragone", "vLLM"):
        print(f"{requests} requests: {name}", file=sys.stderr)
        python, script = engines[name]
        mixed[name] = json.loads(run(python, script, "mixed", exported(), str(requests), str(rate))[1])
    print("what the parts gain and cost", file=sys.stderr)
    parts = json.loads(run(sys.executable, "own_engine.py", "features", exported())[1])

    rows = [
        [name, *(f"{m[key] * factor:{form}}" for key, factor, form in COLUMNS.values())]
        for name, m in mixed.items()
    ]
    here = describe_machine()
    lines = [
        f"SmolLM2-135M in bfloat16; {here['cpu']}, {here['cores']} cores, kernels {here['kernels']}, torch "
        f"{here['torch']}; `make bench-engine`.",
        "",
        "Equal requests of 13 and 64 tokens, prompts included in the time (transformers: the better of its",
        "continuous batching and of one batch whose members start and end together):",
        "",
        *at_once(found),
        "",
        f"{requests} requests that arrive at random, {rate:g} a second on the average, with prompts of "
        f"{PROMPTS[0]} to {PROMPTS[1]} and",
        f"answers of {ANSWERS[0]} to {ANSWERS[1]} tokens, evenly drawn:",
        "",
        *table(["", *COLUMNS], rows),
        "",
        f"Guesses by prompt lookup on a text to be edited: {parts['lookup_gain']:.2f} x the speed, the same "
        f"tokens; {parts.pop('lookup_right'):.0%} of the guesses were right.",
    ]
    print("\n".join(lines))
    if write:
        write_section(PAGE, "Many requests at once", lines)

    def ratio(key: str, peer: str) -> float:
        pairs = zip(found["Paragone"], found[peer], strict=True)
        return round(median(own[key] / other[key] for own, other in pairs), 2)

    line = {
        "seq16_vs_vllm": ratio("seq16", "vLLM"),
        "seq64_vs_vllm": ratio("seq64", "vLLM"),
        "seq16_vs_transformers": ratio("seq16", "transformers"),
    }
    print(json.dumps(line | {key: round(value, 3) for key, value in parts.items()}))


if __name__ == "__main__":
    main()
