"""Loading peaks at no more than 1.15 times the bytes that stay."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

WIDTH, INNER, LAYERS = 2048, 5632, 3
MEASURE = """
import re, sys
from pathlib import Path
import paragone.engine.model
from paragone.checkpoint.checkpoint import open_checkpoint
from paragone.model.load import load_decoder

def status(field):
    return int(re.search(rf"{field}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

load_decoder(open_checkpoint(Path(sys.argv[1])), sys.argv[3])  # a small one: libraries warm up
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
decoder = load_decoder(open_checkpoint(Path(sys.argv[2])), sys.argv[3])
print(status("VmHWM") - before, decoder.weight_bytes)
"""


def save(folder, width, inner, layers, dtype):
    folder.mkdir()
    config = {
        "model_type": "llama", "hidden_size": width, "intermediate_size": inner, "num_attention_heads": 16,
        "num_key_value_heads": 16, "num_hidden_layers": layers, "vocab_size": 64, "max_position_embeddings": 128,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    square, wide = torch.randn(width, width).to(dtype), torch.randn(inner, width).to(dtype)
    tensors = {
        "model.embed_tokens.weight": square[:64],
        "lm_head.weight": square[:64] + 1,
        "model.norm.weight": torch.ones(width),
    }
    for at in (f"model.layers.{i}." for i in range(layers)):
        tensors |= {f"{at}self_attn.{p}_proj.weight": square.clone() for p in "qkvo"}
        tensors |= {f"{at}mlp.{p}_proj.weight": wide.clone() for p in ("gate", "up")}
        tensors |= {f"{at}mlp.down_proj.weight": wide.T.contiguous()}
        tensors |= {f"{at}{p}_layernorm.weight": torch.ones(width) for p in ("input", "post_attention")}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("memory")
    save(base / "small", 64, 96, 1, torch.float16)
    for name, dtype in (("half", torch.float16), ("bfloat", torch.bfloat16)):
        save(base / name, WIDTH, INNER, LAYERS, dtype)
    return base


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize("stored", ["half", "bfloat"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
def test_loading_peaks_barely_above_what_stays(stored, precision, folders):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folders / "small"), str(folders / stored), precision],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    peak, stays = map(int, done.stdout.split())
    assert stays > 80e6
    assert peak <= 1.15 * stays, f"{peak / 1e6:.0f} MB for {stays / 1e6:.0f} MB that stay: {peak / stays:.2f}"
