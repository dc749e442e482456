"""Paragone beside transformers on SmolLM2-135M in bfloat16: decode, prefill, start, memory, and --help.

    python -m benchmarks.foundation [ROUNDS]

Both run the same Hugging Face folder, written from the GGUF file once, each in a process of its own, in
turn; figures are medians over the rounds and ratios are made round by round. Start is from exec to the
first token of a short prompt, tokenizer and model loading included. The last line is JSON.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.export import export
from benchmarks.peers import interpreter
from benchmarks.turns import ENVIRONMENT, HERE
from paragone import paths
from paragone.checkpoint.checkpoint import open_checkpoint
from paragone.engine.load import load_tokenizer
from paragone.engine.resolve import locate
from paragone.text.backends import TokenizersBackend


def exported() -> Path:
    """SmolLM2 as a bfloat16 Hugging Face folder with its tokenizer, made once."""
    folder = paths.home() / "benchmarks" / "smollm2-bf16"
    if not (folder / "tokenizer_config.json").exists():
        checkpoint = open_checkpoint(locate("smollm2-135m-instruct").path)
        export(checkpoint, folder, torch.bfloat16)
        backend = load_tokenizer(checkpoint).backend
        assert isinstance(backend, TokenizersBackend)
        (folder / "tokenizer.json").write_text(backend.serialised())
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def run(python: Path | str, script: str, mode: str, folder: Path, *numbers: str) -> tuple[float, str]:
    """Seconds until the script's first line of output, and that line."""
    begin = time.perf_counter()
    with subprocess.Popen(
        [str(python), str(HERE / script), mode, str(folder), *numbers],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ENVIRONMENT,
    ) as process:  # fmt: skip
        assert process.stdout
        line = process.stdout.readline()
        spent = time.perf_counter() - begin
        process.stdout.read()
    if process.returncode or not line:
        sys.exit(f"{script} {mode} failed")
    return spent, line


def help_seconds() -> float:
    """Median seconds of `paragone --help`."""
    command = [str(Path(sys.executable).with_name("paragone")), "--help"]
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - begin)
    return median(times)


def main(rounds: int) -> None:
    folder, peer = exported(), interpreter("transformers")
    ours, theirs, starts = [], [], []
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        ours.append(json.loads(run(sys.executable, "own.py", "speed", folder)[1]))
        theirs.append(json.loads(run(peer, "peer_transformers.py", "speed", folder)[1]))
        own_start = run(sys.executable, "own.py", "start", folder)[0]
        starts.append((own_start, run(peer, "peer_transformers.py", "start", folder)[0]))
    ratios = {
        k: median(a[k] / b[k] for a, b in zip(ours, theirs, strict=True)) for k in ("decode", "prefill")
    }
    start = median(b / a for a, b in starts)
    over, help_s = median(r["over_mb"] for r in ours), help_seconds()
    print(f"{'':24}{'Paragone':>12}{'transformers':>14}{'ratio':>8}")
    for key, title in (("decode", "decode, tokens/s"), ("prefill", "prefill of 512, tokens/s")):
        mine, other = median(r[key] for r in ours), median(r[key] for r in theirs)
        print(f"{title:24}{mine:12.1f}{other:14.1f}{ratios[key]:8.2f}")
    a, b = (median(s[i] for s in starts) for i in (0, 1))
    print(f"{'start to first token, s':24}{a:12.2f}{b:14.2f}{start:8.2f}")
    print(f"peak memory over weights and cache: {over:.0f} MB; paragone --help: {help_s:.3f} s")
    print(
        json.dumps(
            {
                "decode_bf16_vs_transformers": round(ratios["decode"], 2),
                "prefill512_bf16_vs_transformers": round(ratios["prefill"], 2),
                "start_vs_transformers": round(start, 2),
                "peak_over_weights_and_cache_mb": round(over),
                "help_s": round(help_s, 3),
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
