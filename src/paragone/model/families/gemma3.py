"""Gemma 3, text only: norms before and after each half of a block, RMSNorm on q and k heads, five
sliding-window layers to one full one, each kind with its own rope.

Sources: arXiv 2503.19786; transformers' `Gemma3ForCausalLM` for the numbers. Hugging Face files store
norm weights minus one, GGUF files store them whole; here a norm weight is always whole.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paragone.checkpoint.checkpoint import Checkpoint
from paragone.checkpoint.facts import Facts
from paragone.model.families import Family, FixUp
from paragone.model.families.common import (
    HF_IGNORED,
    HF_NAMES,
    hf_fields,
    layer_count,
    layer_types,
    rope_from,
    typed_layers,
)
from paragone.model.families.gguf import GGUF_IGNORED_PREFIXES, GGUF_NAMES, gguf_fields, gguf_rope
from paragone.model.spec import LayerSpec, ModelSpec, NormSpec, RopeSpec

# What the reference class assumes where a config.json is silent; the text part of the multimodal
# checkpoints relies on it.
CLASS_DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 26,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": True,
}
FULL_EVERY = 6
LOCAL_THETA, GLOBAL_THETA = 10_000.0, 1_000_000.0
# GGUF does not store the query scale. It is head_dim ** -0.5 for every size but the 27B model, which
# has 62 layers and scales by its hidden size over its heads.
LAYERS_OF_27B = 62


def _ropes_from_hf(facts: Facts, positions: int) -> tuple[RopeSpec, RopeSpec]:
    """(full, sliding): nested `rope_parameters` (new), or theta, local theta and `rope_scaling` (old)."""
    local = facts.number("rope_local_base_freq", LOCAL_THETA)
    theta = facts.number("rope_theta", GLOBAL_THETA)
    if not facts.has("rope_parameters"):
        return rope_from(facts.sub("rope_scaling"), theta, positions), RopeSpec(local)
    facts.raw("rope_scaling", None)
    nested = facts.sub("rope_parameters")
    ropes = []
    for kind, default in (("full_attention", theta), ("sliding_attention", local)):
        parameters = nested.sub(kind)
        ropes.append(rope_from(parameters, parameters.number("rope_theta", default), positions))
    nested.finish(())
    return ropes[0], ropes[1]


def _layers_from_hf(facts: Facts) -> tuple[LayerSpec, ...]:
    count = layer_count(facts, "num_hidden_layers", CLASS_DEFAULTS["num_hidden_layers"])
    every = facts.integer("_sliding_window_pattern", FULL_EVERY)
    every = facts.integer("sliding_window_pattern", every)
    types = layer_types(facts, count, [(i + 1) % every != 0 for i in range(count)])
    return typed_layers(facts, types, {"full": 0, "sliding": 1})


def _from_hf(facts: Facts, _: Checkpoint) -> ModelSpec:
    fields = hf_fields(facts, CLASS_DEFAULTS)
    spec = ModelSpec(
        family="gemma3_text",
        **fields,
        **_wiring(fields["hidden_size"], facts.number("rms_norm_eps", 1e-6)),
        layers=_layers_from_hf(facts),
        ropes=_ropes_from_hf(facts, fields["max_position_embeddings"]),
        qk_norm="weighted",
        query_scale=facts.number("query_pre_attn_scalar", 256.0) ** -0.5,
        sliding_window=facts.integer("sliding_window", 4096),
        final_logit_softcapping=facts.number("final_logit_softcapping", None),
    )
    facts.expect("hidden_activation", "gelu_pytorch_tanh")
    facts.expect("hidden_act", "gelu_pytorch_tanh", "gelu")
    facts.expect("attention_bias", False)
    facts.expect("use_bidirectional_attention", False)
    facts.raw("attn_logit_softcapping", None)  # a field of Gemma 2 that Gemma 3 never applies
    facts.finish(HF_IGNORED)
    return spec


def _wiring(hidden_size: int, eps: float) -> dict[str, Any]:
    """What makes a Gemma 3, whichever file it comes from."""
    return {
        "norm": NormSpec(eps, scale_in_float32=True),
        "block": "sandwich",
        "activation": "gelu_tanh",
        "embedding_scale": hidden_size**0.5,
    }


def _from_gguf(facts: Facts, checkpoint: Checkpoint) -> ModelSpec:
    fields = gguf_fields(facts, checkpoint)
    count = layer_count(facts, "block_count")
    every = facts.raw("attention.sliding_window_pattern", FULL_EVERY)
    if isinstance(every, int):
        sliding = [every > 0 and (i + 1) % every != 0 for i in range(count)]
    elif hasattr(every, "__len__") and len(every) == count:
        sliding = [bool(flag) for flag in every]
    else:
        raise facts.fail("attention.sliding_window_pattern", f"is neither a number nor {count} flags")
    local = facts.number("rope.freq_base_swa", LOCAL_THETA)
    hidden, heads = fields["hidden_size"], fields["num_attention_heads"]
    scalar = hidden / heads if count == LAYERS_OF_27B else fields["head_dim"]
    spec = ModelSpec(
        family="gemma3_text",
        **fields,
        **_wiring(hidden, facts.number("attention.layer_norm_rms_epsilon")),
        layers=tuple(LayerSpec("sliding", 1) if s else LayerSpec("full", 0) for s in sliding),
        ropes=(gguf_rope(facts, checkpoint, GLOBAL_THETA, fields["head_dim"]), RopeSpec(local)),
        query_scale=scalar**-0.5,
        sliding_window=facts.integer("attention.sliding_window"),
        final_logit_softcapping=facts.number("final_logit_softcapping", None),
    )
    facts.raw("attn_logit_softcapping", None)
    facts.finish((), GGUF_IGNORED_PREFIXES)
    return spec


def _whole(rows: NDArray[np.generic], _: ModelSpec) -> NDArray[np.generic]:
    """Hugging Face's stored norm weight w to the whole 1 + w, in float32."""
    return (1.0 + rows.astype(np.float32)).astype(np.float32)


def whole_norms(names: Mapping[str, str]) -> dict[str, FixUp]:
    """The fix-up of every norm weight of a Gemma."""
    return {name: _whole for name in names if name.split(".")[-2].endswith("norm")}


HF_NAMES_OF_SANDWICH = HF_NAMES | {
    "layers.{}.attn_post_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "layers.{}.mlp_norm.weight": "model.layers.{}.pre_feedforward_layernorm.weight",
    "layers.{}.mlp_post_norm.weight": "model.layers.{}.post_feedforward_layernorm.weight",
}

FAMILIES = {
    "hf": {"gemma3_text": Family(_from_hf, HF_NAMES_OF_SANDWICH, fixups=whole_norms(HF_NAMES_OF_SANDWICH))},
    "gguf": {"gemma3": Family(_from_gguf, GGUF_NAMES)},
}
