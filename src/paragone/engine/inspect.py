"""What a model is, read from its files without loading a weight."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paragone.checkpoint.checkpoint import Checkpoint, open_checkpoint
from paragone.engine.load import known_format, load_tokenizer
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


def inspect_model(path: Path, name: str | None = None) -> dict[str, Any]:
    """The spec as read, parameters of each part, bytes, tokenizer and template. Plain values for JSON. By its
    `name` the catalogue may know a prompt format."""
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
        "weight_bytes": {
            precision: estimate_bytes(spec, precision, checkpoint.tensors.values())
            for precision in PRECISIONS
        },
        "cache_bytes_per_token": {"bf16": spec.kv_bytes(1, 2), "fp32": spec.kv_bytes(1, 4)},
        "cache_bytes_when_full": {
            "bf16": spec.kv_bytes(spec.max_position_embeddings, 2),
            "fp32": spec.kv_bytes(spec.max_position_embeddings, 4),
        },
        "context": spec.max_position_embeddings,
        "ignored_keys": ignored,
        "text": _text(checkpoint, name or (path.stem if path.is_file() else path.name)),
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


def describe(spec: ModelSpec, *, sizes: bool = True) -> str:
    """The architecture in the field's terms, in a sentence; without `sizes` what holds for a family's models
    of any size."""

    def with_sizes(text: str, plain: str = "") -> list[str]:
        return [text] if sizes else [plain] if plain else []

    words = ["decoder-only", *with_sizes(f"{spec.num_layers} layers of width {spec.hidden_size}")]
    words += with_sizes(_heads(spec), _sharing(spec))
    words += _attention(spec, sizes=sizes) + _positions(spec, sizes=sizes)
    gate = {"silu": "SwiGLU", "gelu_tanh": "GeGLU (tanh)", "gelu": "GeGLU"}.get(
        spec.activation, spec.activation
    )
    plain = {"gelu": "GELU (erf)"}.get(spec.activation, "GELU (tanh)")
    width = f" of width {spec.intermediate_size}" if sizes else ""
    words.append(f"{gate if spec.gated_mlp else plain}{width}")
    if spec.moe:
        mixed = sum(layer.moe for layer in spec.layers)
        which = f"{mixed} layers are mixtures: {spec.moe.top_k} of {spec.moe.num_experts} experts a token"
        shared = " and one that all tokens see" if spec.moe.shared_intermediate_size else ""
        words += with_sizes(which + shared, f"mixture of experts{shared}")
    words.append("LayerNorm" if spec.norm.kind == "layer" else "RMSNorm")
    words.append(
        {
            "pre": "pre-norm",
            "sandwich": "norms on both sides",
            "parallel": "parallel attention and MLP",
            "parallel_two_norms": "parallel attention and MLP with a norm each",
        }[spec.block]
    )
    biases = [
        name for name, has in (("q, k, v", spec.qkv_bias), ("o", spec.o_bias), ("MLP", spec.mlp_bias)) if has
    ]
    words += [f"biases on {' and '.join(biases)}"] if biases else []
    if spec.attn_logit_softcapping or spec.final_logit_softcapping:
        words.append("softcapped logits")
    words.append("tied embeddings" if spec.tie_word_embeddings else "untied embeddings")
    return ", ".join(words)


def _heads(spec: ModelSpec) -> str:
    heads = f"{spec.num_attention_heads} heads of {spec.head_dim}"
    if spec.num_key_value_heads == 1:
        return heads + " that share one key/value head (MQA)"
    if spec.num_key_value_heads < spec.num_attention_heads:
        return heads + f" over {spec.num_key_value_heads} key/value heads (GQA)"
    return heads


def _sharing(spec: ModelSpec) -> str:
    if spec.num_key_value_heads == 1:
        return "MQA"
    return "GQA" if spec.num_key_value_heads < spec.num_attention_heads else "MHA"


def _attention(spec: ModelSpec, *, sizes: bool) -> list[str]:
    """What layers see, where it is not everything."""
    kinds = Counter(layer.attention for layer in spec.layers)
    words = []
    for kind, what, reach in (
        ("sliding", "a sliding window", spec.sliding_window),
        ("chunked", "chunks", spec.attention_chunk),
    ):
        count = kinds[kind]  # type: ignore[index]
        if count and sizes:
            words.append(f"{count} layers see {what} of {reach}")
        elif count:
            words.append(f"{'all' if count == spec.num_layers else 'some'} layers see {what}")
    if spec.qk_norm:
        words.append("norm on queries and keys")
    return words


def _positions(spec: ModelSpec, *, sizes: bool) -> list[str]:
    words = ["ALiBi"] if spec.alibi else []
    for rope in spec.ropes:
        about = [f"theta {rope.theta:g}"] if sizes else []
        about += [] if rope.scaling == "none" else [f"scaled by {rope.scaling}"]
        about += ["neighbouring pairs"] if rope.pairs else []
        partly = "" if rope.dim is None else f" of {rope.dim} numbers" if sizes else " of a part of the head"
        words.append(f"RoPE{partly}" + (f" ({', '.join(about)})" if about else ""))
    return words


def _text(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """Tokenizer, template and stop tokens; why there are none where they are missing."""
    try:
        tokenizer = load_tokenizer(checkpoint)
    except NotFound as err:
        return {"missing": str(err)}
    prompt_format = known_format(tokenizer, name)
    return {
        "vocabulary": tokenizer.vocab_size,
        "special_tokens": len(tokenizer.special),
        "prefix": [tokenizer.special_text(i) for i in tokenizer.prefix],
        "stop_tokens": {i: tokenizer.special_text(i) for i in sorted(tokenizer.stop_ids)},
        "prompt_format": prompt_format,
        "chat_template": tokenizer.chat_template,
    }
