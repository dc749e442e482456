"""Writes a model that Paragone has read from GGUF as a Hugging Face folder, so that a peer can run it.

    python benchmarks/export.py MODEL.gguf FOLDER [bf16|fp32]

The weights are dequantised once, to the type asked for; what the peer runs is what Paragone runs at that
precision. Prints nothing but errors.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from paragone.checkpoint.checkpoint import Checkpoint, open_checkpoint
from paragone.model.families import family_of, spec_of
from paragone.model.families.common import HF_NAMES
from paragone.model.families.gemma3 import FAMILIES as GEMMA3
from paragone.model.parameters import parameter_names, stored_name, template
from paragone.model.spec import ModelSpec

CLASSES = {"llama": "LlamaForCausalLM", "gemma3_text": "Gemma3ForCausalLM"}


def config_of(spec: ModelSpec, dtype: str) -> dict[str, object]:
    """config.json's content for a spec of one of the two default models' families."""
    config: dict[str, object] = {
        "model_type": spec.family,
        "architectures": [CLASSES[spec.family]],
        "torch_dtype": dtype,
        "rms_norm_eps": spec.norm.eps,
        "num_hidden_layers": spec.num_layers,
        "eos_token_id": list(spec.eos_token_ids) or None,
        "bos_token_id": None,
    }
    for key in [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "tie_word_embeddings",
    ]:
        config[key] = getattr(spec, key)
    if spec.family == "llama":
        config["rope_theta"] = spec.ropes[0].theta
    else:
        config |= {
            "rope_theta": spec.ropes[0].theta,
            "rope_local_base_freq": spec.ropes[1].theta,
            "query_pre_attn_scalar": round(spec.attention_scale**-2),
            "sliding_window": spec.sliding_window,
            "layer_types": [f"{layer.attention}_attention" for layer in spec.layers],
        }
    return config


def export(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype) -> None:
    """Writes config.json and model.safetensors."""
    spec, family = spec_of(checkpoint), family_of(checkpoint)
    names = GEMMA3["hf"]["gemma3_text"].names if spec.family == "gemma3_text" else HF_NAMES
    tensors = {}
    for name in parameter_names(spec, HF_NAMES):
        rows = checkpoint.tensors[stored_name(name, family.names)].rows()
        fixup = family.fixups.get(template(name))
        values = torch.from_numpy((fixup(rows, spec) if fixup else rows).copy()).float()
        if spec.family == "gemma3_text" and name.endswith("norm.weight"):
            values -= 1
        tensors[stored_name(name, names)] = values.to(dtype).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps(config_of(spec, str(dtype).removeprefix("torch.")), indent=1)
    (folder / "config.json").write_text(text)


if __name__ == "__main__":
    source, target, *rest = sys.argv[1:]
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[rest[0] if rest else "bf16"]
    export(open_checkpoint(Path(source)), Path(target), dtype)
