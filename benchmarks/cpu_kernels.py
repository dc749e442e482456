"""The kernels beside llama.cpp and vLLM's CPU build, on the same files; ends in one JSON line.

    python -m benchmarks.cpu_kernels [--turns 5] [--write]

Every engine runs in a process of its own with two threads, and keeps its model ready; each figure is measured
once by the one and once by the other, in several turns of seconds (turns.py): ratios are made turn by turn,
and their medians count. Beside the figures stand the limits that the machine itself gave: bytes read a second
by both threads, products made on registers alone. With --write the tables become docs/performance.md's.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import click

from benchmarks.engine import PAGE, processor, table, write_section
from benchmarks.foundation import exported, run
from benchmarks.large import large
from benchmarks.peers import interpreter
from benchmarks.turns import Engine, Turn, in_turn
from paragone import paths
from paragone.engine.resolve import locate
from paragone.engine.resources import describe_machine
from paragone.model.precision import Precision

PROMPTS = ("prefill512", "prefill4096")
DECODING = ("decode1", "decode16", "decode64")
EQUAL = ("seq16", "seq64")
OWN, LLAMA, VLLM = "Paragone", "llama.cpp", "vLLM"
INT8 = "int8"  # Paragone's own eight bits, made of the file in bfloat16
GEMMA, LARGE = "Gemma 3 270M Q4_K_M", "1.1B Q4_0"
LONG_TURNS = 3  # of prompts of 4,096, at most


class Aim(NamedTuple):
    """How many times the peer's figure Paragone's should be, on which model."""

    ratio: float
    figure: str
    model: str
    peer: str


AIMS = {
    "decode_int4_vs_llamacpp": Aim(2.0, "decode1", "Q4_0", LLAMA),
    "decode_int8_vs_llamacpp": Aim(1.5, "decode1", INT8, LLAMA),
    "decode_bf16_vs_llamacpp": Aim(1.5, "decode1", "BF16", LLAMA),
    "decode_gemma3_vs_llamacpp": Aim(1.5, "decode1", GEMMA, LLAMA),
    "decode_large_vs_llamacpp": Aim(1.15, "decode1", LARGE, LLAMA),
    "prefill512_int4_vs_llamacpp": Aim(6.0, "prefill512", "Q4_0", LLAMA),
    "prefill512_int8_vs_llamacpp": Aim(6.0, "prefill512", INT8, LLAMA),
    "prefill512_vs_vllm": Aim(2.0, "prefill512", INT8, VLLM),
    "prefill4096_vs_vllm": Aim(2.0, "prefill4096", INT8, VLLM),
    "seq16_vs_llamacpp": Aim(5.0, "decode16", "Q4_0", LLAMA),
    "seq64_vs_llamacpp": Aim(5.0, "decode64", "Q4_0", LLAMA),
    "seq16_vs_vllm": Aim(3.0, "seq16", INT8, VLLM),
    "seq64_vs_vllm": Aim(3.0, "seq64", INT8, VLLM),
}


class Files(NamedTuple):
    """What Paragone runs, in which precision, and what llama.cpp does. int8 keeps what a file has in fewer
    bits."""

    own: Path
    precision: Precision
    llama: Path


def files() -> dict[str, Files]:
    """What is measured."""
    source = locate("smollm2-135m-instruct").path
    folder = paths.home() / "benchmarks"
    made = {kind: folder / f"smollm2-{kind}.gguf" for kind in ("Q4_0", "Q8_0", "BF16")}
    for kind, path in made.items():
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            run(interpreter("llamacpp"), "peer_llamacpp.py", "quantize", source, str(path), kind)
    out = {kind: Files(path, "bf16" if kind == "BF16" else "int8", path) for kind, path in made.items()}
    out[INT8] = Files(made["BF16"], "int8", made["Q8_0"])
    gemma, big = locate("gemma3-270m").path, large()
    return out | {GEMMA: Files(gemma, "int8", gemma), LARGE: Files(big, "int8", big)}


class Pair:
    """Paragone's turns and a peer's, by figure."""

    def __init__(self, peer: str, model: str, turns: int) -> None:
        self.peer = peer
        path, precision, its_path = files()[model]
        if peer == VLLM:
            figures: tuple[str, ...] = (*EQUAL, *PROMPTS)
            other = interpreter("vllm"), "peer_vllm.py", "turns", exported()
        else:
            # Long prompts of the large one would take as long as all else.
            figures = (*DECODING, *(PROMPTS[:1] if model == LARGE else PROMPTS))
            other = interpreter("llamacpp"), "peer_llamacpp.py", "turns", its_path
        self.turns: dict[str, list[Turn]] = {}
        with Engine(sys.executable, "own_kernels.py", path, precision) as own, Engine(*other) as its:
            self.model = own.measure("model")
            for figure in figures:
                times = min(turns, LONG_TURNS) if figure == PROMPTS[1] else turns
                self.turns[figure] = in_turn({OWN: own, peer: its}, figure, times)
                # Told at once: it is not lost, whatever becomes of the rest.
                print(model, peer, figure, json.dumps(self.turns[figure]), file=sys.stderr, flush=True)

    def own(self, figure: str, what: str = "rate") -> float:
        return self.of(figure, lambda turn: turn[OWN][what])

    def of(self, figure: str, value: Callable[[Turn], float]) -> float:
        """The median of what the turns have."""
        return median(map(value, self.turns[figure]))

    def ratio(self, figure: str, what: str = "rate") -> float:
        """Of ours (or of `most`: of what the machine allows) to the peer's."""
        return self.of(figure, lambda turn: turn[OWN][what] / turn[self.peer]["rate"])

    def rows(self, figures: tuple[str, ...], model: str) -> list[list[str]]:
        """Ours and the peer's tokens/s."""

        def rate(engine: str, figure: str) -> str:
            found = self.turns.get(figure)
            return f"{median(turn[engine]['rate'] for turn in found):.0f}" if found else "–"

        return [[f"{who} {model}".strip(), *(rate(who, f) for f in figures)] for who in (OWN, self.peer)]


def starts() -> dict[str, float]:
    path, precision, _ = files()["Q4_0"]
    llama, vllm = interpreter("llamacpp"), interpreter("vllm")
    return {
        OWN: warm_start(sys.executable, "own_start.py", "start", path, precision),
        "PyTorch": warm_start(sys.executable, "own_start.py", "import", path, precision),
        LLAMA: warm_start(llama, "peer_llamacpp.py", "start", path),
        VLLM: warm_start(vllm, "peer_vllm.py", "start", exported()),
    }


def warm_start(python: Path | str, script: str, mode: str, path: Path, *more: str) -> float:
    """Median seconds from exec to the first line of output when all files were read just before."""
    times = 2 if script == "peer_vllm.py" else 4
    return median([run(python, script, mode, path, *more)[0] for _ in range(times)][1:])


def on_registers(alone: dict[str, float], *, tiles: bool) -> list[str]:
    """In words, what the machine multiplies when nothing has to be fetched."""
    if tiles:
        return [
            f"On registers alone matrix units make {alone['rows']:.2f} TOP/s with codes of 8 bits, where a",
            f"row and a token have one scale, and {alone['bf16']:.2f} TFLOP/s with bfloat16, which codes in",
            "the formats of files become before.",
        ]
    return [
        f"On registers alone the machine makes {alone['int4']:.2f} TOP/s with codes of 4 bits, every 32 of",
        f"them brought to two scales, {alone['int8']:.2f} with those of 8, {alone['rows']:.2f} where a row",
        f"and a token have one, and {alone['bf16']:.2f} TFLOP/s with bfloat16.",
    ]


@click.command()
@click.option("--turns", default=5)
@click.option("--write", is_flag=True)
def main(turns: int, write: bool) -> None:
    pairs = {(LLAMA, model): Pair(LLAMA, model, turns) for model in files()}
    pairs[VLLM, INT8] = Pair(VLLM, INT8, turns)
    start = starts()
    print(json.dumps(start), file=sys.stderr)

    ratios = {
        name: [pairs[aim.peer, aim.model].ratio(aim.figure, what) for what in ("rate", "most")]
        for name, aim in AIMS.items()
    }
    four_bits = pairs[LLAMA, "Q4_0"]
    line = {name: round(own, 2) for name, (own, _) in ratios.items()} | {
        "decode_int4_bandwidth_share": round(four_bits.own("decode1", "share"), 2),
        "first_token_s": round(start[OWN], 2),
        "peak_over_weights_and_cache_mb": round(four_bits.model["over_bytes"] / 1e6),
    }
    limits = [
        [name.replace("_", " "), f"{AIMS[name].ratio:g}", f"{own:.2f}", f"{most:.2f}"]
        for name, (own, most) in ratios.items()
    ]
    shares = []
    for model in files():
        pair = pairs[LLAMA, model]
        size, share = pair.model["weight_bytes"], pair.own("decode1", "share")
        rates = pair.own("decode1") * size / 1e9, pair.own("decode1", "read") / 1e9
        multiplied = pair.own("prefill512") * pair.model["operations"] / 1e12
        row = [f"{size / 1e6:.0f}", *(f"{rate:.1f}" for rate in rates), f"{share:.0%}", f"{multiplied:.2f}"]
        shares.append([model, *row])
    alone = {kind: four_bits.own("prefill512", kind) / 1e12 for kind in ("int4", "int8", "rows", "bf16")}
    here = describe_machine()
    lines = [
        f"{here['cpu']}, {here['cores']} cores, kernels {here['kernels']};",
        f"`python -m benchmarks.cpu_kernels --turns {turns}` (`make bench-kernels` with five turns):",
        f"medians of {turns} turns of seconds, of prompts of 4,096 at most {LONG_TURNS}. SmolLM2-135M where",
        "nothing else is said; int8 is Paragone's own, made of the weights in bfloat16, and stands beside",
        "llama.cpp's Q8_0. Paragone reads a prompt of 4,096 in one step (`max_num_batched_tokens`;",
        "512 by itself, so that others need not wait).",
        "",
        *table(
            ["tokens/s", "1 sequence", "16", "64", "prompt of 512", "of 4,096"],
            [row for model in files() for row in pairs[LLAMA, model].rows((*DECODING, *PROMPTS), model)],
        ),
        "",
        "Equal requests, prompts included (Paragone in int8, vLLM in bfloat16), and prompts:",
        "",
        *table(
            ["tokens/s", "16 at once", "64", "prompt of 512", "of 4,096"],
            pairs[VLLM, INT8].rows((*EQUAL, *PROMPTS), ""),
        ),
        "",
        "As ratios: what is aimed at, what it is, and what a program would have that reads weights and cache",
        "at the rate below while it makes products, attention's as well, at that of registers alone, and",
        "needs no time for anything else (just before and just after each figure, the better of the two;",
        "a figure above it was measured while the machine gave more):",
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
        *on_registers(alone, tiles="amx" in here["kernels"]),
        "",
        "From exec to the first token, all files in the cache:",
        f"{start[OWN]:.2f} s, of which the import of PyTorch takes {start['PyTorch']:.2f} s by itself",
        f"(llama.cpp {start[LLAMA]:.2f} s, vLLM {start[VLLM]:.2f} s).",
        "",
        f"The process took {line['peak_over_weights_and_cache_mb']} MB at most beside the weights and the "
        "cache of 576 tokens,",
        "Python and PyTorch with it.",
    ]
    print("\n".join(lines))
    if write:
        write_section(PAGE, f"The kernels beside llama.cpp ({here['kernels']}, {processor()})", lines)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
