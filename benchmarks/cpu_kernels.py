"""The kernels beside llama.cpp and vLLM's CPU build, on the same files; ends in one JSON line.

    python -m benchmarks.cpu_kernels [--rounds 3] [--write]

Every engine runs in a process of its own with two threads, in turn, in several rounds: ratios are made round
by round, and their medians count. Beside the figures stand the limits that the machine itself gave: bytes
read a second by both threads, products made on registers alone. With --write the tables become
docs/performance.md's.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click

from benchmarks.engine import PAGE, table, write_section
from benchmarks.foundation import exported, run
from benchmarks.large import large
from benchmarks.peers import interpreter
from paragone import paths
from paragone.engine.resolve import locate
from paragone.engine.resources import describe_machine

Measured = dict[str, float]
PROMPTS = ("prefill512", "prefill4096")
KEYS = ("decode1", "decode16", "decode64", *PROMPTS)
EQUAL = ("seq16", "seq64")
LARGE = "1.1B Q4_0"  # long prompts of it would take as long as all else
EQUAL_REQUESTS = "Paragone, equal requests"
# What is aimed at, which figure it is, and whose.
RATIOS = {
    "decode_int4_vs_llamacpp": (2.0, "decode1", "Paragone Q4_0", "llama.cpp Q4_0"),
    "decode_int8_vs_llamacpp": (1.5, "decode1", "Paragone Q8_0", "llama.cpp Q8_0"),
    "decode_bf16_vs_llamacpp": (1.5, "decode1", "Paragone BF16", "llama.cpp BF16"),
    "decode_gemma3_vs_llamacpp": (
        1.5,
        "decode1",
        "Paragone Gemma 3 270M Q4_K_M",
        "llama.cpp Gemma 3 270M Q4_K_M",
    ),
    "decode_large_vs_llamacpp": (1.15, "decode1", f"Paragone {LARGE}", f"llama.cpp {LARGE}"),
    "prefill512_int4_vs_llamacpp": (6.0, "prefill512", "Paragone Q4_0", "llama.cpp Q4_0"),
    "prefill512_int8_vs_llamacpp": (6.0, "prefill512", "Paragone Q8_0", "llama.cpp Q8_0"),
    "prefill512_vs_vllm": (2.0, "prefill512", "Paragone Q4_0", "vLLM"),
    "prefill4096_vs_vllm": (2.0, "prefill4096", "Paragone Q4_0", "vLLM"),
    "seq16_vs_llamacpp": (5.0, "decode16", "Paragone Q4_0", "llama.cpp Q4_0"),
    "seq64_vs_llamacpp": (5.0, "decode64", "Paragone Q4_0", "llama.cpp Q4_0"),
    "seq16_vs_vllm": (3.0, "seq16", EQUAL_REQUESTS, "vLLM"),
    "seq64_vs_vllm": (3.0, "seq64", EQUAL_REQUESTS, "vLLM"),
}


def files() -> dict[str, tuple[Path, str]]:
    """What is measured: a file and Paragone's precision for it. int8 keeps what the file has in fewer
    bits."""
    source = locate("smollm2-135m-instruct").path
    folder = paths.home() / "benchmarks"
    out: dict[str, tuple[Path, str]] = {}
    for kind, precision in (("Q4_0", "int8"), ("Q8_0", "int8"), ("BF16", "bf16")):
        path = folder / f"smollm2-{kind}.gguf"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            run(interpreter("llamacpp"), "peer_llamacpp.py", "quantize", source, str(path), kind)
        out[kind] = path, precision
    out["Gemma 3 270M Q4_K_M"] = locate("gemma3-270m").path, "int8"
    out[LARGE] = large(), "int8"
    return out


class Noted(dict[str, Measured]):
    """What is measured, told at once: it is not lost, whatever becomes of the rest."""

    def __setitem__(self, name: str, figures: Measured) -> None:
        super().__setitem__(name, figures)
        print(json.dumps({name: figures}), file=sys.stderr, flush=True)


def rounds_of(count: int) -> list[dict[str, Measured]]:
    found: list[dict[str, Measured]] = []
    llama, vllm = interpreter("llamacpp"), interpreter("vllm")
    for number in range(count):
        print(f"round {number + 1} of {count}", file=sys.stderr)
        measured = Noted()
        for name, (path, precision) in files().items():
            longest = "512" if name == LARGE else "4096"
            measured[f"Paragone {name}"] = json.loads(
                run(sys.executable, "own_kernels.py", "speed", path, precision, longest)[1]
            )
            peer = run(llama, "peer_llamacpp.py", "speed", path, longest)[1]
            measured[f"llama.cpp {name}"] = json.loads(peer)
        path, precision = files()["Q4_0"]
        equal = run(sys.executable, "own_kernels.py", "throughput", path, precision)[1]
        measured[EQUAL_REQUESTS] = json.loads(equal)
        measured["vLLM"] = json.loads(run(vllm, "peer_vllm.py", "kernels", exported())[1])
        measured["start"] = {
            "Paragone": warm_start(sys.executable, "own_start.py", "start", path, precision),
            "PyTorch": warm_start(sys.executable, "own_start.py", "import", path, precision),
            "llama.cpp": warm_start(llama, "peer_llamacpp.py", "start", path),
            "vLLM": warm_start(vllm, "peer_vllm.py", "start", exported()),
        }
        found.append(measured)
    return found


def warm_start(python: Path | str, script: str, mode: str, path: Path, *more: str) -> float:
    """Seconds from exec to the first line of output when all files were read just before."""
    return [run(python, script, mode, path, *more)[0] for _ in range(2)][-1]


def rows(found: list[dict[str, Measured]]) -> list[list[str]]:
    def figure(name: str, key: str) -> str:
        return f"{median(m[name][key] for m in found):.0f}" if key in found[0][name] else "–"

    out = []
    for name in found[0]:
        if name.startswith(("Paragone ", "llama.cpp ")):
            out.append([name, *(figure(name, key) for key in KEYS)])
    return out


@click.command()
@click.option("--rounds", default=3)
@click.option("--write", is_flag=True)
def main(rounds: int, write: bool) -> None:
    found = rounds_of(rounds)

    def ratio(key: str, mine: str, peer: str) -> Callable[[str], float]:
        """Median over the rounds of a figure over the peer's; of "most_": of what the machine allows."""
        return lambda kind: round(median(m[mine][kind + key] / m[peer][key] for m in found), 2)

    def own(key: str, name: str = "Q4_0") -> float:
        return median(m[f"Paragone {name}"][key] for m in found)

    ratios = {figure: ratio(key, mine, peer) for figure, (_, key, mine, peer) in RATIOS.items()}
    line = {figure: of("") for figure, of in ratios.items()}
    limits = [
        [figure.replace("_", " "), f"{RATIOS[figure][0]:g}", f"{of(''):.2f}", f"{of('most_'):.2f}"]
        for figure, of in ratios.items()
    ]
    line |= {
        "decode_int4_bandwidth_share": round(own("bandwidth_share"), 2),
        "first_token_s": round(median(m["start"]["Paragone"] for m in found), 2),
        "peak_over_weights_and_cache_mb": round(own("over_bytes") / 1e6),
    }
    here = describe_machine()
    shares = []
    for name in files():
        size, share = own("weight_bytes", name), own("bandwidth_share", name)
        rates = own("decode1", name) * size / 1e9, own("read_gb_per_s", name)
        multiplied = own("prefill512", name) * own("operations", name) / 1e12
        row = [f"{size / 1e6:.0f}", *(f"{rate:.1f}" for rate in rates), f"{share:.0%}", f"{multiplied:.2f}"]
        shares.append([name, *row])
    peer, mine = (
        [f"{median(m[who][key] for m in found):.0f}" for key in keys]
        for who, keys in (("vLLM", EQUAL + PROMPTS), (EQUAL_REQUESTS, EQUAL))
    )
    mine += [f"{own(key):.0f}" for key in PROMPTS]
    start = {name: f"{median(m['start'][name] for m in found):.2f} s" for name in found[0]["start"]}
    lines = [
        f"{here['cpu']}, {here['cores']} cores, kernels {here['kernels']}; `make bench-kernels`,",
        f"{f'medians of {rounds} rounds' if rounds > 1 else 'one round'}. SmolLM2-135M where nothing else "
        "is said.",
        "",
        *table(["tokens/s", "1 sequence", "16", "64", "prompt of 512", "of 4,096"], rows(found)),
        "",
        "Equal requests, prompts included (Paragone on Q4_0, vLLM in bfloat16), and prompts:",
        "",
        *table(
            ["tokens/s", "16 at once", "64", "prompt of 512", "of 4,096"],
            [["Paragone", *mine], ["vLLM", *peer]],
        ),
        "",
        "As ratios: what is aimed at, what it is, and what a program would have that reads the weights at",
        "the rate below, makes the products at that of registers alone, and needs no time for anything else",
        "(measured just before and just after each figure, the better of the two):",
        "",
        *table(["", "aimed at", "measured", "the most"], limits),
        "",
        "One sequence is bound by reading the weights. Beside it, what the machine reads when it does",
        "nothing else, just before or just after; and the layers' products while a prompt of 512 is read:",
        "",
        *table(
            ["weights", "MB a token", "GB/s decoding", "GB/s reading", "share", "T(FL)OP/s of a prompt"],
            shares,
        ),
        "",
        f"On registers alone the machine makes {own('int4_tops'):.2f} TOP/s with codes of 4 bits, brought to",
        f"scale after every 32, {own('int8_tops'):.2f} with those of 8, and {own('bf16_tflops'):.2f} TFLOP/s",
        "with bfloat16.",
        "",
        "From exec to the first token, all files in the cache:",
        f"{start['Paragone']}, of which the import of PyTorch takes {start['PyTorch']} by itself",
        f"(llama.cpp {start['llama.cpp']}, vLLM {start['vLLM']}).",
        "",
        f"The process took {line['peak_over_weights_and_cache_mb']} MB at most beside the weights and the "
        "cache of 576 tokens,",
        "Python and PyTorch with it.",
    ]
    print("\n".join(lines))
    if write:
        write_section(PAGE, f"The kernels beside llama.cpp ({here['kernels']})", lines)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
