"""Gemma 1 and 2: RMSNorm with 1 + w, GELU-gated MLPs, scaled embeddings, a tied head; Gemma 2 also has norms
on both sides of a block's halves, soft caps on scores and logits, and every other layer slides.

Sources: arXiv 2403.08295, 2408.00118; transformers' `GemmaForCausalLM` and `Gemma2ForCausalLM` for the
numbers. Hugging Face files store norm weights minus one.
"""

from typing import Any

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
from paragone.model.families.gemma3 import HF_NAMES_OF_SANDWICH, whole_norms
from paragone.model.families.gguf import GGUF_IGNORED_PREFIXES, GGUF_NAMES, gguf_fields, gguf_rope
from paragone.model.spec import LayerSpec, ModelSpec, NormSpec

THETA = 10_000.0
# GGUF does not store the query scale: of the 27B model, which has 46 layers, it is not head_dim's.
LAYERS_OF_27B = 46
DEFAULTS = {
    "vocab_size": 256_000,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
DEFAULTS_2 = DEFAULTS | {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


def _common(facts: Facts, fields: dict[str, Any]) -> dict[str, Any]:
    """What makes a Gemma 1 or 2."""
    facts.expect("hidden_act", "gelu", "gelu_pytorch_tanh")  # "gelu" was always meant to be by tanh
    facts.expect("hidden_activation", "gelu_pytorch_tanh")
    facts.expect("attention_bias", False)
    facts.expect("use_bidirectional_attention", False)
    facts.raw("cache_implementation", None)
    return {
        "norm": NormSpec(facts.number("rms_norm_eps", 1e-6), scale_in_float32=True),
        "ropes": (hf_rope(facts, THETA, fields["max_position_embeddings"]),),
        "activation": "gelu_tanh",
        "embedding_scale": fields["hidden_size"] ** 0.5,
    }


def _from_hf(facts: Facts, _: Checkpoint) -> ModelSpec:
    fields = hf_fields(facts, DEFAULTS)
    spec = ModelSpec(
        family="gemma",
        **fields,
        **_common(facts, fields),
        layers=(LayerSpec(),) * layer_count(facts, "num_hidden_layers"),
    )
    facts.finish(HF_IGNORED)
    return spec


def _gemma2_from_hf(facts: Facts, _: Checkpoint) -> ModelSpec:
    fields = hf_fields(facts, DEFAULTS_2)
    count = layer_count(facts, "num_hidden_layers", 26)
    types = layer_types(facts, count, [i % 2 == 0 for i in range(count)])
    spec = ModelSpec(
        family="gemma2",
        **fields,
        **_common(facts, fields),
        layers=typed_layers(facts, types, {"full": 0, "sliding": 0}),
        block="sandwich",
        query_scale=facts.number("query_pre_attn_scalar", 256.0) ** -0.5,
        sliding_window=facts.integer("sliding_window", 4096),
        attn_logit_softcapping=_cap(facts, "attn_logit_softcapping", 50.0),
        final_logit_softcapping=_cap(facts, "final_logit_softcapping", 30.0),
    )
    facts.finish(HF_IGNORED)
    return spec


def _gguf_common(facts: Facts, checkpoint: Checkpoint) -> dict[str, Any]:
    fields = gguf_fields(facts, checkpoint)
    return fields | {
        "norm": NormSpec(facts.number("attention.layer_norm_rms_epsilon"), scale_in_float32=True),
        "ropes": (gguf_rope(facts, checkpoint, THETA, fields["head_dim"]),),
        "activation": "gelu_tanh",
        "embedding_scale": fields["hidden_size"] ** 0.5,
    }


def _from_gguf(facts: Facts, checkpoint: Checkpoint) -> ModelSpec:
    fields = _gguf_common(facts, checkpoint)
    spec = ModelSpec(family="gemma", **fields, layers=(LayerSpec(),) * layer_count(facts, "block_count"))
    facts.finish((), GGUF_IGNORED_PREFIXES)
    return spec


def _gemma2_from_gguf(facts: Facts, checkpoint: Checkpoint) -> ModelSpec:
    fields = _gguf_common(facts, checkpoint)
    count = layer_count(facts, "block_count")
    scalar = fields["head_dim"]
    if count == LAYERS_OF_27B:
        scalar = fields["hidden_size"] / fields["num_attention_heads"]
    spec = ModelSpec(
        family="gemma2",
        **fields,
        layers=tuple(LayerSpec("full" if i % 2 else "sliding") for i in range(count)),
        block="sandwich",
        query_scale=scalar**-0.5,
        sliding_window=facts.integer("attention.sliding_window", 4096),
        attn_logit_softcapping=facts.number("attn_logit_softcapping", 50.0),
        final_logit_softcapping=facts.number("final_logit_softcapping", 30.0),
    )
    facts.finish((), GGUF_IGNORED_PREFIXES)
    return spec


def _cap(facts: Facts, key: str, default: float) -> float | None:
    """A soft cap: null means none, absence the class's own."""
    value: float | None = facts.number(key, None if key in facts.values else default)
    return value


FAMILIES = {
    "hf": {
        "gemma": Family(_from_hf, HF_NAMES, fixups=whole_norms(HF_NAMES)),
        "gemma2": Family(_gemma2_from_hf, HF_NAMES_OF_SANDWICH, fixups=whole_norms(HF_NAMES_OF_SANDWICH)),
    },
    "gguf": {"gemma": Family(_from_gguf, GGUF_NAMES), "gemma2": Family(_gemma2_from_gguf, GGUF_NAMES)},
}
