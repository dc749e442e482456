"""Llama 4, the text part: every fourth layer sees everything and knows no positions, the others see chunks
and turn neighbouring pairs; mixtures of experts of which each token gets one, and one that all tokens see.

Sources: transformers' `Llama4ForCausalLM`, for the numbers as well. GGUF does not say how layers alternate,
how long chunks are nor how queries grow: llama.cpp's values, those of the released models, are taken.
"""

from dataclasses import replace

from paragone.checkpoint.checkpoint import Checkpoint
from paragone.checkpoint.facts import Facts
from paragone.model.families import Family
from paragone.model.families.common import (
    HF_IGNORED,
    HF_NAMES,
    flags,
    hf_fields,
    hf_rope,
    layer_count,
    numbers_below,
)
from paragone.model.families.gguf import (
    GGUF_IGNORED_PREFIXES,
    GGUF_MOE_NAMES,
    gguf_fields,
    gguf_moe,
    gguf_moe_layers,
    gguf_rope,
)
from paragone.model.spec import LayerSpec, ModelSpec, MoESpec, NormSpec

THETA = 500_000.0
CHUNK, FLOOR, SCALE = 8192, 8192, 0.1
NO_ROPE_EVERY = 4
KINDS = {"full_attention": "full", "chunked_attention": "chunked"}


def _layers(facts: Facts) -> tuple[LayerSpec, ...]:
    count = layer_count(facts, "num_hidden_layers")
    every = facts.integer("no_rope_layer_interval", NO_ROPE_EVERY)
    turned = flags(facts, "no_rope_layers", count, [(i + 1) % every != 0 for i in range(count)])
    step = facts.integer("interleave_moe_layer_step", 1)
    mixed = numbers_below(facts, "moe_layers", count)
    if not facts.has("moe_layers"):
        mixed = set(range(step - 1, count, step))
    types = facts.raw("layer_types", ["chunked_attention" if t else "full_attention" for t in turned])
    if (
        not isinstance(types, list)
        or len(types) != count
        or not all(isinstance(t, str) and t in KINDS for t in types)
    ):
        raise facts.fail("layer_types", f"is not a list of {count} known kinds")
    return tuple(
        LayerSpec(KINDS[kind], 0 if turn else None, moe=i in mixed)  # type: ignore[arg-type]
        for i, (kind, turn) in enumerate(zip(types, turned, strict=True))
    )


def _from_hf(facts: Facts, _: Checkpoint) -> ModelSpec:
    fields = hf_fields(facts, {"max_position_embeddings": 4096 * 32, "num_key_value_heads": 8})
    expert_width = fields.pop("intermediate_size")
    rope = hf_rope(facts, THETA, fields["max_position_embeddings"])
    tuned = facts.raw("attn_temperature_tuning", True)
    floor, scale = facts.integer("floor_scale", FLOOR), facts.number("attn_scale", SCALE)
    spec = ModelSpec(
        family="llama4_text",
        **fields,
        intermediate_size=facts.integer("intermediate_size_mlp", 16_384),
        layers=_layers(facts),
        norm=NormSpec(facts.number("rms_norm_eps", 1e-5)),
        ropes=(replace(rope, pairs=True),),
        qk_norm="l2" if facts.flag("use_qk_norm", True) else None,
        attention_chunk=facts.integer("attention_chunk_size", CHUNK),
        temperature_floor=floor if tuned else 0,
        temperature_scale=scale if tuned else 0.0,
        moe=MoESpec(
            facts.integer("num_local_experts", 16, most=1024),
            facts.integer("num_experts_per_tok", 1, most=1024),
            expert_width,
            score="sigmoid",
            shared_intermediate_size=expert_width,
        ),
    )
    facts.expect("hidden_act", "silu")
    facts.expect("attention_bias", False)
    ignored = {"output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "for_llm_compressor"}
    facts.finish(HF_IGNORED | ignored)
    return spec


def _from_gguf(facts: Facts, checkpoint: Checkpoint) -> ModelSpec:
    fields = gguf_fields(facts, checkpoint)
    moe = gguf_moe(facts, checkpoint, fields["intermediate_size"], score="sigmoid")
    if moe is None:
        raise facts.fail("expert_count", "is missing")
    layers = gguf_moe_layers(checkpoint, layer_count(facts, "block_count"), LayerSpec("chunked"))
    full = range(NO_ROPE_EVERY - 1, len(layers), NO_ROPE_EVERY)
    rope = gguf_rope(facts, checkpoint, THETA, fields["head_dim"])
    spec = ModelSpec(
        family="llama4_text",
        **{**fields, "qk_norm": None if moe.num_experts == 128 else "l2"},
        layers=tuple(LayerSpec("full", None, moe=x.moe) if i in full else x for i, x in enumerate(layers)),
        norm=NormSpec(facts.number("attention.layer_norm_rms_epsilon")),
        ropes=(replace(rope, pairs=True),),
        attention_chunk=CHUNK,
        temperature_floor=FLOOR,
        temperature_scale=SCALE,
        moe=replace(moe, shared_intermediate_size=moe.intermediate_size),
    )
    facts.expect("attention.sliding_window", CHUNK)
    facts.expect("expert_gating_func", 2)
    facts.integer("interleave_moe_layer_step", 1)  # the routers that are there say it
    facts.finish((), GGUF_IGNORED_PREFIXES)
    return spec


_AT = "model.layers.{}.feed_forward."
_NAMES = HF_NAMES | {
    "layers.{}.moe.router.weight": _AT + "router.weight",
    "layers.{}.moe.{}.gate_up.weight": _AT + "experts.gate_up_proj[{}]",
    "layers.{}.moe.{}.down.weight": _AT + "experts.down_proj[{}]",
    **{
        f"layers.{{}}.moe.shared.{p}.weight": f"{_AT}shared_expert.{p}_proj.weight"
        for p in ("gate", "up", "down")
    },
    **{f"layers.{{}}.mlp.{p}.weight": f"{_AT}{p}_proj.weight" for p in ("gate", "up", "down")},
}

FAMILIES = {
    "hf": {
        "llama4_text": Family(
            _from_hf,
            _NAMES,
            transposed=frozenset({"layers.{}.moe.{}.gate_up.weight", "layers.{}.moe.{}.down.weight"}),
        )
    },
    "gguf": {"llama4": Family(_from_gguf, GGUF_MOE_NAMES, ignored_tensors=frozenset({"rope_freqs.weight"}))},
}
