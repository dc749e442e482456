"""A checkpoint of Mistral 7B's shape, 14.5 GB of random numbers in shards, and what loading it costs.

    python -m benchmarks.seven_billion                     makes it, inspects it, loads it in three precisions
    python -m benchmarks.seven_billion FOLDER PRECISION [keep]    loads what is there, in this process

Writes docs/loading.md and ends in one JSON line: seconds of `paragone inspect`, and for each precision the
peak over what stays.
"""

import json
import math
import mmap
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from paragone.model.precision import Precision

BLOCK = 4096
PAGE_FILE = Path(__file__).parents[1] / "docs" / "loading.md"
PAGE_TEXT = """# Loading seven billion parameters

Made by `make bench-load`: a checkpoint of Mistral 7B's shape, random bfloat16 numbers in 33 shards. Memory is
that of the process, over what it was before loading. At bf16 the weights are compressed as they are read, to
twelve bits a number, without loss.

`paragone inspect`: {inspect} s from start to end, no weight read.

| precision | stays | peak | time |
|---|---|---|---|
{rows}
"""
CONFIG = {
    "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_key_value_heads": 8, "num_hidden_layers": 32, "vocab_size": 32000, "max_position_embeddings": 32768,
    "sliding_window": None, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "tie_word_embeddings": False,
}  # fmt: skip
LAYER = {
    "self_attn.q_proj": (4096, 4096), "self_attn.k_proj": (1024, 4096), "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096), "mlp.gate_proj": (14336, 4096), "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336), "input_layernorm": (4096,), "post_attention_layernorm": (4096,),
}  # fmt: skip
OUTER = {"model.embed_tokens": (32000, 4096), "lm_head": (32000, 4096), "model.norm": (4096,)}
PARAMETERS = 7_241_732_096
A_LAYER = sum(map(math.prod, LAYER.values()))  # of them


LOADS: tuple[tuple[Precision, tuple[str, ...], str], ...] = (
    ("bf16", (), "bf16"),
    ("int8", (), "int8"),
    ("int4", (), "int4"),
    ("int4", ("keep",), "int4, then kept on disk"),
    ("int4", ("keep",), "int4, from what is kept"),
)


def make(folder: Path, *, numbers: bool = True, layers: int = 32) -> None:
    """Writes the folder. Every tensor is a window of its own into one long run of random numbers; or a hole
    in the file, which reads as zeros."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))
    shards = [{f"model.layers.{i}.{k}.weight": v for k, v in LAYER.items()} for i in range(layers)]
    shards.append({f"{k}.weight": v for k, v in OUTER.items()})
    noise = _noise() if numbers else None
    index: dict[str, str] = {}
    for number, shapes in enumerate(shards):
        name = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        index |= dict.fromkeys(shapes, name)
        _write_shard(folder / name, shapes, noise, number)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def _noise() -> mmap.mmap:
    import torch

    longest = 32000 * 4096 * 2
    noise = mmap.mmap(-1, longest + 512 * BLOCK)  # aligned, so that it can go to the disk past the cache
    numbers = torch.frombuffer(noise, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    step = 1 << 22
    for at in range(0, len(numbers), step):
        part = numbers[at : at + step]
        part.copy_(torch.randn(len(part), generator=generator) / 64)
    return noise


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]], noise: mmap.mmap | None, seed: int) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % BLOCK)
    first = mmap.mmap(-1, len(text) + 8)
    first[:] = len(text).to_bytes(8, "little") + text
    flags = os.O_WRONLY | os.O_CREAT
    try:
        file = os.open(path, flags | getattr(os, "O_DIRECT", 0))
    except OSError:  # a file system that wants its cache
        file = os.open(path, flags)
    try:
        _write_all(file, memoryview(first))
        if noise is None:
            os.ftruncate(file, len(first) + end)
            return
        for at, entry in enumerate(header.values()):
            begin, stop = entry["data_offsets"]
            shift = (seed * len(LAYER) + at) % 512 * BLOCK
            _write_all(file, memoryview(noise)[shift : shift + stop - begin])
    finally:
        os.close(file)


def _write_all(file: int, view: memoryview) -> None:
    done = 0
    while done < len(view):
        done += os.write(file, view[done:])


def measure(folder: Path, precision: Precision, *, keep: bool) -> dict[str, float]:
    """Peak memory over what it was before, what stays, and the time; in a process of its own."""
    import paragone.engine.model  # noqa: F401 -- its libraries are no part of loading
    from paragone.checkpoint.checkpoint import open_checkpoint
    from paragone.model.load import load_decoder

    def status(field: str) -> int:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
        return int(line.split()[1]) * 1024

    before = status("VmRSS")
    started = time.perf_counter()
    decoder = load_decoder(open_checkpoint(folder), precision, keep_packed=keep)
    seconds = time.perf_counter() - started
    peak = status("VmHWM") - before
    return {"peak_bytes": peak, "weight_bytes": decoder.weight_bytes, "seconds": seconds}


def load_apart(folder: Path, precision: Precision, *keep: str) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.seven_billion", str(folder), precision, *keep]
    here = os.environ | {"PARAGONE_HOME": str(folder.parent / "home")}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=here)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def main() -> None:
    """Everything, with a table of what was found."""
    found: dict[str, float] = {}
    rows = []
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base) / "seven-billion"
        print("writing 14.5 GB ...", file=sys.stderr)
        make(folder)
        inspect = [str(Path(sys.executable).with_name("paragone")), "inspect", str(folder)]
        spent = []
        for _ in range(5):
            begin = time.perf_counter()
            subprocess.run(inspect, stdout=subprocess.DEVNULL, check=True)
            spent.append(time.perf_counter() - begin)
        found["inspect_s"] = round(median(spent), 2)
        for precision, keep, what in LOADS:
            load = load_apart(folder, precision, *keep)
            peak, stays = (load[key] / 1e9 for key in ("peak_bytes", "weight_bytes"))
            rows.append(f"| {what} | {stays:.2f} GB | {peak:.2f} GB | {load['seconds']:.1f} s |")
            if not keep:
                found[f"{precision}_peak_over_what_stays"] = round(peak / stays, 3)
        found["int4_kept_s"] = round(load["seconds"], 2)
    page = PAGE_TEXT.format(inspect=found["inspect_s"], rows="\n".join(rows))
    print(page)
    PAGE_FILE.write_text(page)
    print(json.dumps(found))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2], keep="keep" in sys.argv)))  # type: ignore[arg-type]
    else:
        main()
