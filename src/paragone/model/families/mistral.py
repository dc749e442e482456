"""Mistral 7B, Nemo and what is wired alike, and Mixtral: Llama's wiring, a sliding window in the first
release, and in Mixtral eight experts a layer, two of which see each token.

Made by Mistral AI. Sources: arXiv 2310.06825, 2401.04088; transformers' `MistralForCausalLM` and
`MixtralForCausalLM` for the numbers.
"""

from paragone.checkpoint.checkpoint import Checkpoint
from paragone.checkpoint.facts import Facts
from paragone.model.families import Family
from paragone.model.families.common import HF_IGNORED, HF_NAMES, hf_fields, hf_rope, layer_count
from paragone.model.spec import LayerSpec, ModelSpec, MoESpec, NormSpec

DEFAULTS = {"max_position_embeddings": 131_072, "num_key_value_heads": 8}
CLASS_WINDOW = 4096  # what the class assumes where a config.json does not say; null means none


def _window(facts: Facts, default: int | None) -> int | None:
    if "sliding_window" in facts.values:
        default = None
    window: int | None = facts.integer("sliding_window", default)
    return window


def _from_hf(facts: Facts, _: Checkpoint) -> ModelSpec:
    fields = hf_fields(facts, DEFAULTS)
    window = _window(facts, CLASS_WINDOW)
    layer = LayerSpec("full" if window is None else "sliding")
    spec = ModelSpec(
        family="mistral",
        **fields,
        layers=(layer,) * layer_count(facts, "num_hidden_layers"),
        norm=NormSpec(facts.number("rms_norm_eps", 1e-6)),
        ropes=(hf_rope(facts, 10_000.0, fields["max_position_embeddings"]),),
        sliding_window=window,
    )
    facts.expect("hidden_act", "silu")
    facts.finish(HF_IGNORED)
    return spec


def _mixtral_from_hf(facts: Facts, _: Checkpoint) -> ModelSpec:
    fields = hf_fields(facts, DEFAULTS)
    window = _window(facts, None)
    layer = LayerSpec("full" if window is None else "sliding", moe=True)
    spec = ModelSpec(
        family="mixtral",
        **fields,
        layers=(layer,) * layer_count(facts, "num_hidden_layers"),
        norm=NormSpec(facts.number("rms_norm_eps", 1e-5)),
        ropes=(hf_rope(facts, 1_000_000.0, fields["max_position_embeddings"]),),
        sliding_window=window,
        moe=MoESpec(
            facts.integer("num_local_experts", 8, most=1024),
            facts.integer("num_experts_per_tok", 2, most=1024),
            fields["intermediate_size"],
            renormalise=True,
            float32_weights=True,
        ),
    )
    facts.expect("hidden_act", "silu")
    facts.finish(HF_IGNORED | {"output_router_logits", "router_aux_loss_coef", "router_jitter_noise"})
    return spec


_AT = "model.layers.{}."
_EXPERT = _AT + "block_sparse_moe.experts.{}."
_MIXTRAL_NAMES = HF_NAMES | {
    "layers.{}.moe.router.weight": _AT + "block_sparse_moe.gate.weight",
    "layers.{}.moe.{}.gate.weight": _EXPERT + "w1.weight",
    "layers.{}.moe.{}.up.weight": _EXPERT + "w3.weight",
    "layers.{}.moe.{}.down.weight": _EXPERT + "w2.weight",
}
STACKED = {
    "layers.{}.moe.router.weight": _AT + "mlp.gate.weight",
    "layers.{}.moe.{}.gate_up.weight": _AT + "mlp.experts.gate_up_proj[{}]",
    "layers.{}.moe.{}.down.weight": _AT + "mlp.experts.down_proj[{}]",
}
# transformers 5 keeps experts in stacks, and some files are saved so.
STACKED_LAYOUT = ("model.layers.0.mlp.experts.gate_up_proj", STACKED)

FAMILIES = {
    "hf": {
        "mistral": Family(_from_hf, HF_NAMES),
        "mixtral": Family(_mixtral_from_hf, _MIXTRAL_NAMES, layouts=(STACKED_LAYOUT,)),
    }
}
