"""What a model is, read from its files without loading a weight."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paragone.checkpoint.checkpoint import Checkpoint, open_checkpoint
from paragone.engine.load import load_tokenizer
from paragone.errors import NotFound
from paragone.model.families import family_of, read_spec
from paragone.model.parameters import parameter_names, split_index, stored_name
from paragone.model.precision import PRECISIONS, estimate_bytes
from paragone.model.spec import ModelSpec

# What a neutral name holds, and the part of the model that this is.
PARTS = (
    ("embed", "embedding"),
    ("head", "head"),
    (".moe.", "experts"),
    (".mlp.", "mlp"),
    (".attn.", "attention"),
)


def inspect_model(path: Path) -> dict[str, Any]:
    """The spec as read, parameters of each part, bytes, tokenizer and template. Plain values for JSON."""
    checkpoint = open_checkpoint(path)
    spec, ignored = read_spec(checkpoint)
    return {
        "path": str(path),
        "format": {"hf": "Hugging Face folder", "gguf": "GGUF"}[checkpoint.dialect],
        "family": spec.family,
        "architecture": describe(spec),
        "spec": asdict(spec),
        "parameters": checkpoint.num_parameters,
        "parameters_by_part": parts(checkpoint, spec),
        "disk_bytes": checkpoint.disk_bytes,
        "stored_as": dict(Counter(t.type.name for t in checkpoint.tensors.values())),
        "weight_bytes": {precision: estimate_bytes(spec, precision) for precision in PRECISIONS},
        "cache_bytes_per_token": {"bf16": spec.kv_bytes(1, 2), "fp32": spec.kv_bytes(1, 4)},
        "cache_bytes_when_full": {
            "bf16": spec.kv_bytes(spec.max_position_embeddings, 2),
            "fp32": spec.kv_bytes(spec.max_position_embeddings, 4),
        },
        "context": spec.max_position_embeddings,
        "ignored_keys": ignored,
        "text": _text(checkpoint),
    }


def parts(checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, int]:
    """Stored numbers of each part of the model."""
    names = family_of(checkpoint).names
    counts: Counter[str] = Counter()
    seen = set()
    for name in parameter_names(spec, names):
        stored = split_index(stored_name(name, names))[0]
        if stored in seen or stored not in checkpoint.tensors:
            continue
        seen.add(stored)
        size = 1
        for dim in checkpoint.tensors[stored].shape:
            size *= dim
        bare = name.rsplit(".", 1)[0]
        part = "norms" if bare.endswith("norm") else next(p for at, p in PARTS if at in name)
        counts[part] += size
    return dict(counts)


def describe(spec: ModelSpec) -> str:
    """The architecture in the field's terms, in a sentence."""
    kinds = Counter(layer.attention for layer in spec.layers)
    heads = f"{spec.num_attention_heads} heads of {spec.head_dim}"
    if spec.num_key_value_heads == 1:
        heads += " that share one key/value head (MQA)"
    elif spec.num_key_value_heads < spec.num_attention_heads:
        heads += f" over {spec.num_key_value_heads} key/value heads (GQA)"
    words = [f"decoder-only, {spec.num_layers} layers of width {spec.hidden_size}", heads]
    if kinds["sliding"]:
        words.append(f"{kinds['sliding']} layers see a window of {spec.sliding_window}")
    if kinds["chunked"]:
        words.append(f"{kinds['chunked']} layers see chunks of {spec.attention_chunk}")
    if spec.alibi:
        words.append("ALiBi")
    for rope in spec.ropes:
        scaled = "" if rope.scaling == "none" else f", scaled by {rope.scaling}"
        partly = "" if rope.dim is None else f" of {rope.dim} numbers"
        words.append(f"RoPE{partly} (theta {rope.theta:g}{scaled})")
    gate = {"silu": "SwiGLU", "gelu_tanh": "GeGLU", "gelu": "GeGLU"}.get(spec.activation, spec.activation)
    words.append(f"{gate if spec.gated_mlp else 'GELU'} of width {spec.intermediate_size}")
    if spec.moe:
        mixed = sum(layer.moe for layer in spec.layers)
        words.append(
            f"{mixed} layers are mixtures: {spec.moe.top_k} of {spec.moe.num_experts} experts a token"
        )
    words.append("LayerNorm" if spec.norm.kind == "layer" else "RMSNorm")
    words.append(
        {"pre": "pre-norm", "sandwich": "norms on both sides"}.get(spec.block, "parallel attention and MLP")
    )
    words.append("tied embeddings" if spec.tie_word_embeddings else "untied embeddings")
    return ", ".join(words)


def _text(checkpoint: Checkpoint) -> dict[str, Any]:
    """Tokenizer, template and stop tokens; why there are none where they are missing."""
    try:
        tokenizer = load_tokenizer(checkpoint)
    except NotFound as err:
        return {"missing": str(err)}
    return {
        "vocabulary": tokenizer.vocab_size,
        "special_tokens": len(tokenizer.special),
        "prefix": [tokenizer.special_text(i) for i in tokenizer.prefix],
        "stop_tokens": {i: tokenizer.special_text(i) for i in sorted(tokenizer.stop_ids)},
        "chat_template": tokenizer.chat_template,
    }
