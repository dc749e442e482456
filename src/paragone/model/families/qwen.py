"""Qwen 1.5, 2 and 2.5 (qwen2: biases on q, k and v) and Qwen 3 (qwen3: no bias, RMSNorm on q and k heads).

Sources: arXiv 2309.16609, 2407.10671, 2505.09388; transformers' `Qwen2ForCausalLM` and
`Qwen3ForCausalLM` for the numbers.
"""

from paragone.checkpoint.checkpoint import Checkpoint
from paragone.checkpoint.facts import Facts
from paragone.model.families import Family
from paragone.model.families.common import (
    HF_IGNORED,
    HF_NAMES,
    hf_fields,
    hf_rope,
    layer_count,
    layer_types,
    typed_layers,
)
from paragone.model.families.gguf import GGUF_IGNORED_PREFIXES, GGUF_NAMES, gguf_fields, gguf_rope
from paragone.model.spec import LayerSpec, ModelSpec, NormSpec

THETA = 10_000.0


def _hf_layers(facts: Facts) -> tuple[tuple[LayerSpec, ...], int | None]:
    """The layers and their window: sliding from layer `max_window_layers` on, if at all."""
    count = layer_count(facts, "num_hidden_layers")
    window = facts.integer("sliding_window", 4096)
    slides = facts.flag("use_sliding_window", False)
    first = facts.integer("max_window_layers", 28, least=0)
    types = layer_types(facts, count, [slides and i >= first for i in range(count)])
    layers = typed_layers(facts, types, {"full": 0, "sliding": 0})
    return layers, window if any(layer.attention == "sliding" for layer in layers) else None


def _hf_spec(facts: Facts, family: str, *, qkv_bias: bool, o_bias: bool, qk_norm: bool) -> ModelSpec:
    defaults = {"max_position_embeddings": 32_768} | ({"head_dim": 128} if qk_norm else {})
    fields = hf_fields(facts, defaults)
    layers, window = _hf_layers(facts)
    spec = ModelSpec(
        family=family,
        **fields,
        layers=layers,
        norm=NormSpec(facts.number("rms_norm_eps", 1e-6)),
        ropes=(hf_rope(facts, THETA, fields["max_position_embeddings"]),),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        qk_norm="weighted" if qk_norm else None,
        sliding_window=window,
    )
    facts.expect("hidden_act", "silu")
    facts.expect("use_mrope", False)
    facts.finish(HF_IGNORED)
    return spec


def _qwen2_from_hf(facts: Facts, _: Checkpoint) -> ModelSpec:
    return _hf_spec(facts, "qwen2", qkv_bias=True, o_bias=False, qk_norm=False)


def _qwen3_from_hf(facts: Facts, _: Checkpoint) -> ModelSpec:
    bias = facts.flag("attention_bias", False)
    return _hf_spec(facts, "qwen3", qkv_bias=bias, o_bias=bias, qk_norm=True)


def _from_gguf(facts: Facts, checkpoint: Checkpoint) -> ModelSpec:
    fields = gguf_fields(facts, checkpoint)
    spec = ModelSpec(
        family=checkpoint.architecture,
        **fields,
        layers=(LayerSpec(),) * layer_count(facts, "block_count"),
        norm=NormSpec(facts.number("attention.layer_norm_rms_epsilon")),
        ropes=(gguf_rope(facts, checkpoint, THETA, fields["head_dim"]),),
    )
    facts.finish((), GGUF_IGNORED_PREFIXES)
    return spec


FAMILIES = {
    "hf": {"qwen2": Family(_qwen2_from_hf, HF_NAMES), "qwen3": Family(_qwen3_from_hf, HF_NAMES)},
    "gguf": {"qwen2": Family(_from_gguf, GGUF_NAMES), "qwen3": Family(_from_gguf, GGUF_NAMES)},
}
