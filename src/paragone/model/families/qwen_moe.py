"""Qwen 1.5 MoE and Qwen2-MoE (qwen2_moe: many small experts and one that every token sees), and Qwen3-MoE
(qwen3_moe: no shared expert, RMSNorm on q and k heads).

Sources: arXiv 2407.10671, 2505.09388; transformers' `Qwen2MoeForCausalLM` and `Qwen3MoeForCausalLM` for the
numbers.
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
    numbers_below,
    typed_layers,
)
from paragone.model.families.gguf import (
    GGUF_IGNORED_PREFIXES,
    GGUF_MOE_NAMES,
    gguf_fields,
    gguf_moe,
    gguf_moe_layers,
    gguf_rope,
)
from paragone.model.families.mistral import STACKED
from paragone.model.spec import LayerSpec, ModelSpec, MoESpec, NormSpec

THETA = 10_000.0
DEFAULTS = {"max_position_embeddings": 32_768}


def _moe(facts: Facts, experts: int, chosen: int, width: int, shared: int) -> MoESpec:
    return MoESpec(
        facts.integer("num_experts", facts.integer("num_local_experts", experts, most=1024), most=1024),
        facts.integer("num_experts_per_tok", chosen, most=1024),
        facts.integer("moe_intermediate_size", width),
        renormalise=facts.flag("norm_topk_prob", False),
        shared_intermediate_size=facts.integer("shared_expert_intermediate_size", shared) if shared else 0,
        shared_gate=bool(shared),
    )


def _sparse(facts: Facts, count: int) -> list[bool]:
    """Which layers are mixtures."""
    step = facts.integer("decoder_sparse_step", 1)
    dense = numbers_below(facts, "mlp_only_layers", count)
    return [i not in dense and (i + 1) % step == 0 for i in range(count)]


def _spec(facts: Facts, family: str, moe: MoESpec, types: list[Any], **wiring: Any) -> ModelSpec:
    fields = hf_fields(facts, DEFAULTS)
    kinds = typed_layers(facts, types, {"full": 0, "sliding": 0})
    sparse = _sparse(facts, len(types))
    window = facts.integer("sliding_window", 4096, least=0)  # 0 where it is not used
    spec = ModelSpec(
        family=family,
        **fields,
        **wiring,
        layers=tuple(LayerSpec(k.attention, 0, moe=s) for k, s in zip(kinds, sparse, strict=True)),
        norm=NormSpec(facts.number("rms_norm_eps", 1e-6)),
        ropes=(hf_rope(facts, THETA, fields["max_position_embeddings"]),),
        sliding_window=window if any(k.attention == "sliding" for k in kinds) else None,
        moe=moe,
    )
    facts.expect("hidden_act", "silu")
    facts.finish(HF_IGNORED | {"output_router_logits", "router_aux_loss_coef"})
    return spec


def _qwen2_moe(facts: Facts, _: Checkpoint) -> ModelSpec:
    count = layer_count(facts, "num_hidden_layers")
    slides = facts.flag("use_sliding_window", False)
    last = facts.integer("max_window_layers", 28, least=0)
    types = layer_types(facts, count, [slides and i % 2 == 0 and i < last for i in range(count)])
    moe = _moe(facts, 60, 4, 1408, 5632)
    return _spec(facts, "qwen2_moe", moe, types, qkv_bias=facts.flag("qkv_bias", True))


def _qwen3_moe(facts: Facts, _: Checkpoint) -> ModelSpec:
    count = layer_count(facts, "num_hidden_layers")
    slides = facts.flag("use_sliding_window", False)
    facts.integer("max_window_layers", 28, least=0)
    types = layer_types(facts, count, [slides] * count)
    bias = facts.flag("attention_bias", False)
    moe = _moe(facts, 128, 8, 768, 0)
    return _spec(facts, "qwen3_moe", moe, types, qkv_bias=bias, o_bias=bias, qk_norm="weighted")


def _from_gguf(facts: Facts, checkpoint: Checkpoint) -> ModelSpec:
    fields = gguf_fields(facts, checkpoint)
    newer = checkpoint.architecture == "qwen3moe"
    spec = ModelSpec(
        family="qwen3_moe" if newer else "qwen2_moe",
        **fields,
        layers=gguf_moe_layers(checkpoint, layer_count(facts, "block_count"), LayerSpec()),
        norm=NormSpec(facts.number("attention.layer_norm_rms_epsilon")),
        ropes=(gguf_rope(facts, checkpoint, THETA, fields["head_dim"]),),
        moe=gguf_moe(facts, checkpoint, fields["intermediate_size"], renormalise=newer),
    )
    facts.finish((), GGUF_IGNORED_PREFIXES)
    return spec


_AT = "model.layers.{}.mlp."
_NAMES = HF_NAMES | {
    "layers.{}.moe.router.weight": _AT + "gate.weight",
    "layers.{}.moe.shared_gate.weight": _AT + "shared_expert_gate.weight",
    **{
        f"layers.{{}}.moe.{ours}.{part}.weight": f"{_AT}{theirs}.{part}_proj.weight"
        for ours, theirs in (("{}", "experts.{}"), ("shared", "shared_expert"))
        for part in ("gate", "up", "down")
    },
}
# The first layer may be a dense one, so any of the first few may tell.
_LAYOUTS = tuple((f"model.layers.{i}.mlp.experts.gate_up_proj", STACKED) for i in range(8))

FAMILIES = {
    "hf": {
        "qwen2_moe": Family(_qwen2_moe, _NAMES, layouts=_LAYOUTS),
        "qwen3_moe": Family(_qwen3_moe, _NAMES, layouts=_LAYOUTS),
    },
    "gguf": {
        "qwen2moe": Family(_from_gguf, GGUF_MOE_NAMES),
        "qwen3moe": Family(_from_gguf, GGUF_MOE_NAMES),
    },
}
