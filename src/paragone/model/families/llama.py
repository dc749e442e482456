"""Llama 1, 2, 3.x and every model with the same wiring (Vicuna, SmolLM, TinyLlama ...).

Facts: RMSNorm before attention and MLP, rotary positions, grouped-query attention, SwiGLU, no biases
unless the configuration asks for them. Sources: arXiv 2302.13971, 2307.09288, 2407.21783, and
transformers' `LlamaForCausalLM` for the numbers.
"""

import numpy as np
from numpy.typing import NDArray

from paragone.checkpoint.checkpoint import Checkpoint
from paragone.checkpoint.facts import Facts
from paragone.model.families import Family
from paragone.model.families.common import HF_IGNORED, HF_NAMES, hf_fields, hf_rope, layer_count
from paragone.model.families.gguf import (
    GGUF_IGNORED_PREFIXES,
    GGUF_MOE_NAMES,
    GGUF_SINGLE_EXPERTS,
    gguf_fields,
    gguf_moe,
    gguf_moe_layers,
    gguf_rope,
)
from paragone.model.spec import LayerSpec, ModelSpec, NormSpec

THETA = 10_000.0


def _from_hf(facts: Facts, _: Checkpoint) -> ModelSpec:
    fields = hf_fields(facts, {"max_position_embeddings": 2048})
    bias = facts.flag("attention_bias", False)
    spec = ModelSpec(
        family="llama",
        **fields,
        layers=(LayerSpec(),) * layer_count(facts, "num_hidden_layers"),
        norm=NormSpec(facts.number("rms_norm_eps", 1e-6)),
        ropes=(hf_rope(facts, THETA, fields["max_position_embeddings"]),),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=facts.flag("mlp_bias", False),
    )
    facts.expect("hidden_act", "silu")
    facts.expect("rope_interleaved", False)
    facts.expect("sliding_window")
    facts.finish(HF_IGNORED)
    return spec


def _from_gguf(facts: Facts, checkpoint: Checkpoint) -> ModelSpec:
    fields = gguf_fields(facts, checkpoint)
    spec = ModelSpec(
        family="llama",
        **fields,
        layers=gguf_moe_layers(checkpoint, layer_count(facts, "block_count"), LayerSpec()),
        norm=NormSpec(facts.number("attention.layer_norm_rms_epsilon")),
        ropes=(gguf_rope(facts, checkpoint, THETA, fields["head_dim"]),),
        # Mixtral goes by this name as well.
        moe=gguf_moe(facts, checkpoint, fields["intermediate_size"], renormalise=True, float32_weights=True),
    )
    facts.raw("tensor_data_layout", None)
    facts.finish((), GGUF_IGNORED_PREFIXES)
    return spec


def _unpermute(rows: NDArray[np.generic], heads: int) -> NDArray[np.generic]:
    """Undoes what the conversion to GGUF did to q and k: pairs (2i, 2i+1) back to halves (i, i + d/2)."""
    shape = rows.shape
    return rows.reshape(heads, -1, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


FAMILIES = {
    "hf": {
        "llama": Family(
            _from_hf,
            HF_NAMES,
            # Old checkpoints carry the rope's frequencies, which are computed here.
            ignored_tensors=frozenset({"model.layers.{}.self_attn.rotary_emb.inv_freq"}),
        )
    },
    "gguf": {
        "llama": Family(
            _from_gguf,
            GGUF_MOE_NAMES,
            fixups={
                f"layers.{{}}.attn.{part}.{kind}": fixup
                for kind in ("weight", "bias")
                for part, fixup in (
                    ("q", lambda rows, spec: _unpermute(rows, spec.num_attention_heads)),
                    ("k", lambda rows, spec: _unpermute(rows, spec.num_key_value_heads)),
                )
            },
            layouts=(GGUF_SINGLE_EXPERTS,),
            ignored_tensors=frozenset({"rope_freqs.weight"}),  # read by the spec
        )
    },
}
