"""Llama 4, the text part: every fourth layer sees everything and knows no positions, the others see chunks
and turn neighbouring pairs; mixtures of experts of which each token gets one, and one that all tokens see.

Sources: transformers' `Llama4ForCausalLM`, for the numbers as well.
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
from paragone.model.spec import LayerSpec, ModelSpec, MoESpec, NormSpec

KINDS = {"full_attention": "full", "chunked_attention": "chunked"}


def _layers(facts: Facts) -> tuple[LayerSpec, ...]:
    count = layer_count(facts, "num_hidden_layers")
    every = facts.integer("no_rope_layer_interval", 4)
    turned = flags(facts, "no_rope_layers", count, [(i + 1) % every != 0 for i in range(count)])
    step = facts.integer("interleave_moe_layer_step", 1)
    mixed = numbers_below(facts, "moe_layers", count)
    if not facts.has("moe_layers"):
        mixed = set(range(step - 1, count, step))
    types = facts.raw("layer_types", ["chunked_attention" if t else "full_attention" for t in turned])
    if not isinstance(types, list) or len(types) != count or not all(t in KINDS for t in types):
        raise facts.fail("layer_types", f"is not a list of {count} known kinds")
    return tuple(
        LayerSpec(KINDS[kind], 0 if turn else None, moe=i in mixed)  # type: ignore[arg-type]
        for i, (kind, turn) in enumerate(zip(types, turned, strict=True))
    )


def _from_hf(facts: Facts, _: Checkpoint) -> ModelSpec:
    fields = hf_fields(facts, {"max_position_embeddings": 4096 * 32, "num_key_value_heads": 8})
    expert_width = fields.pop("intermediate_size")
    rope = hf_rope(facts, 500_000.0, fields["max_position_embeddings"])
    tuned = facts.raw("attn_temperature_tuning", True)
    floor, scale = facts.integer("floor_scale", 8192), facts.number("attn_scale", 0.1)
    spec = ModelSpec(
        family="llama4_text",
        **fields,
        intermediate_size=facts.integer("intermediate_size_mlp", 16_384),
        layers=_layers(facts),
        norm=NormSpec(facts.number("rms_norm_eps", 1e-5)),
        ropes=(replace(rope, pairs=True),),
        qk_norm="l2" if facts.flag("use_qk_norm", True) else None,
        attention_chunk=facts.integer("attention_chunk_size", 8192),
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
    }
}
