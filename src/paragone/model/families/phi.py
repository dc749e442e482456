"""Phi-1, 1.5 and 2 (phi: attention and MLP side by side behind one LayerNorm, a part of each head turned),
and Phi-3, 3.5, 4 and 4-mini (phi3: Llama's wiring with fused products and longrope).

Made by Microsoft. Sources: arXiv 2306.11644, 2404.14219, 2412.08905; transformers' `PhiForCausalLM` and
`Phi3ForCausalLM` for the numbers.
"""

from paragone.checkpoint.checkpoint import Checkpoint
from paragone.checkpoint.facts import Facts
from paragone.model.families import Family
from paragone.model.families.common import HF_IGNORED, HF_NAMES, hf_fields, hf_rope, layer_count
from paragone.model.families.gguf import (
    GGUF_BIASED_NAMES,
    GGUF_FUSED,
    GGUF_IGNORED_PREFIXES,
    GGUF_NAMES,
    gguf_fields,
    gguf_rope,
)
from paragone.model.spec import LayerSpec, ModelSpec, NormSpec

THETA = 10_000.0
DROPOUTS = {"embd_pdrop", "resid_pdrop"}


def _from_hf(facts: Facts, _: Checkpoint) -> ModelSpec:
    fields = hf_fields(facts, {"max_position_embeddings": 2048})
    rope = hf_rope(facts, THETA, fields["max_position_embeddings"], head_dim=fields["head_dim"], partial=0.5)
    spec = ModelSpec(
        family="phi",
        **fields,
        layers=(LayerSpec(),) * layer_count(facts, "num_hidden_layers"),
        norm=NormSpec(facts.number("layer_norm_eps", 1e-5), kind="layer"),
        ropes=(rope,),
        block="parallel",
        activation="gelu_new",
        gated_mlp=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        head_bias=True,
    )
    facts.expect("hidden_act", "gelu_new")
    facts.expect("qk_layernorm", False)
    facts.finish(HF_IGNORED | DROPOUTS)
    return spec


def _phi3_from_hf(facts: Facts, _: Checkpoint) -> ModelSpec:
    fields = hf_fields(facts, {"max_position_embeddings": 4096})
    rope = hf_rope(
        facts,
        THETA,
        fields["max_position_embeddings"],
        head_dim=fields["head_dim"],
        original=facts.integer("original_max_position_embeddings", 4096),
    )
    window = facts.integer("sliding_window", None)
    layer = LayerSpec("full" if window is None else "sliding")
    spec = ModelSpec(
        family="phi3",
        **fields,
        layers=(layer,) * layer_count(facts, "num_hidden_layers"),
        norm=NormSpec(facts.number("rms_norm_eps", 1e-5)),
        ropes=(rope,),
        sliding_window=window,
    )
    facts.expect("hidden_act", "silu")
    facts.expect("attention_bias", False)
    facts.finish(HF_IGNORED | DROPOUTS)
    return spec


def _from_gguf(facts: Facts, checkpoint: Checkpoint) -> ModelSpec:
    fields = gguf_fields(facts, checkpoint)
    spec = ModelSpec(
        family="phi",
        **fields,
        layers=(LayerSpec(),) * layer_count(facts, "block_count"),
        norm=NormSpec(facts.number("attention.layer_norm_epsilon"), kind="layer"),
        ropes=(gguf_rope(facts, checkpoint, THETA, fields["head_dim"], partial=True),),
        block="parallel",
        activation="gelu_new",
        gated_mlp=False,
        head_bias="output.bias" in checkpoint.tensors,
    )
    facts.finish((), GGUF_IGNORED_PREFIXES)
    return spec


def _phi3_from_gguf(facts: Facts, checkpoint: Checkpoint) -> ModelSpec:
    fields = gguf_fields(facts, checkpoint)
    window = facts.integer("attention.sliding_window", 0, least=0) or None
    layer = LayerSpec("full" if window is None else "sliding")
    spec = ModelSpec(
        family="phi3",
        **fields,
        layers=(layer,) * layer_count(facts, "block_count"),
        norm=NormSpec(facts.number("attention.layer_norm_rms_epsilon")),
        ropes=(gguf_rope(facts, checkpoint, THETA, fields["head_dim"], partial=True),),
        sliding_window=window,
    )
    facts.finish((), GGUF_IGNORED_PREFIXES)
    return spec


_AT = "model.layers.{}."
_NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "head.weight": "lm_head.weight",
    "head.bias": "lm_head.bias",
    **{
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for kind in ("weight", "bias")
        for ours, theirs in {
            "final_norm": "model.final_layernorm",
            "layers.{}.attn_norm": _AT + "input_layernorm",
            "layers.{}.attn.q": _AT + "self_attn.q_proj",
            "layers.{}.attn.k": _AT + "self_attn.k_proj",
            "layers.{}.attn.v": _AT + "self_attn.v_proj",
            "layers.{}.attn.o": _AT + "self_attn.dense",
            "layers.{}.mlp.up": _AT + "mlp.fc1",
            "layers.{}.mlp.down": _AT + "mlp.fc2",
        }.items()
    },
}
_PHI3_NAMES = HF_NAMES | {
    "layers.{}.attn.qkv.weight": _AT + "self_attn.qkv_proj.weight",
    "layers.{}.mlp.gate_up.weight": _AT + "mlp.gate_up_proj.weight",
}

_PHI3_GGUF_NAMES = GGUF_NAMES | {
    "layers.{}.attn.qkv.weight": "blk.{}.attn_qkv.weight",
    "layers.{}.mlp.gate_up.weight": "blk.{}.ffn_up.weight",
}

FAMILIES = {
    "hf": {"phi": Family(_from_hf, _NAMES), "phi3": Family(_phi3_from_hf, _PHI3_NAMES)},
    "gguf": {
        "phi2": Family(_from_gguf, GGUF_BIASED_NAMES, layouts=(("blk.0.attn_qkv.weight", GGUF_FUSED),)),
        "phi3": Family(
            _phi3_from_gguf,
            _PHI3_GGUF_NAMES,
            ignored_tensors=frozenset({"rope_factors_long.weight", "rope_factors_short.weight"}),
        ),
    },
}
