"""Falcon: 7B (one LayerNorm, attention and MLP side by side, one key/value head), 40B and 180B (a norm for
each half, grouped heads), Falcon 2 11B (grouped heads, one norm) and RW-1B (ALiBi, one half after the other).

Made by TII. Source: arXiv 2311.16867; transformers' `FalconForCausalLM` for the numbers.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from paragone.checkpoint.checkpoint import Checkpoint
from paragone.checkpoint.facts import Facts
from paragone.model.families import Family
from paragone.model.families.common import HF_IGNORED, eos_ids, hf_rope, layer_count
from paragone.model.families.gguf import (
    GGUF_BIASED_NAMES,
    GGUF_FUSED,
    GGUF_IGNORED_PREFIXES,
    gguf_fields,
    gguf_rope,
)
from paragone.model.spec import LayerSpec, ModelSpec, NormSpec


def _from_hf(facts: Facts, _: Checkpoint) -> ModelSpec:
    flag, integer = facts.flag, facts.integer
    hidden = integer("hidden_size", integer("n_embed", None) or 4544)
    heads = integer("num_attention_heads", integer("n_head", None) or 71)
    layers = layer_count(facts, "num_hidden_layers", integer("n_layer", None, most=1024) or 32)
    grouped, one_head = flag("new_decoder_architecture", False), flag("multi_query", True)
    stored_kv_heads = integer("num_kv_heads", integer("n_head_kv", None) or heads)
    kv_heads = stored_kv_heads if grouped or not one_head else 1
    alibi, bias = flag("alibi", False), flag("bias", False)
    norms = integer("num_ln_in_parallel_attn", 2 if grouped else 1)
    block = "pre"
    if grouped or flag("parallel_attn", True):
        block = "parallel_two_norms" if grouped and norms == 2 else "parallel"
    flag("parallel_attn", True)
    positions = integer("max_position_embeddings", 2048)
    head_dim = max(hidden // heads, 1)
    rope = hf_rope(facts, 10_000.0, positions)
    spec = ModelSpec(
        family="falcon",
        vocab_size=integer("vocab_size", 65_024),
        hidden_size=hidden,
        intermediate_size=integer("ffn_hidden_size", 4 * hidden),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=positions,
        layers=(LayerSpec(rope=None if alibi else 0),) * layers,
        norm=NormSpec(facts.number("layer_norm_epsilon", 1e-5), kind="layer"),
        ropes=() if alibi else (rope,),
        alibi="falcon" if alibi else None,
        block=block,  # type: ignore[arg-type]
        activation="gelu",
        gated_mlp=False,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
        tie_word_embeddings=flag("tie_word_embeddings", True),
        eos_token_ids=eos_ids(facts),
    )
    facts.expect("activation", "gelu")
    facts.expect("apply_residual_connection_post_layernorm", False)
    facts.finish(HF_IGNORED | {"hidden_dropout", "num_ln_in_parallel_attn"})
    return spec


def _from_gguf(facts: Facts, checkpoint: Checkpoint) -> ModelSpec:
    fields = gguf_fields(facts, checkpoint)
    spec = ModelSpec(
        family="falcon",
        **fields,
        layers=(LayerSpec(),) * layer_count(facts, "block_count"),
        norm=NormSpec(facts.number("attention.layer_norm_epsilon"), kind="layer"),
        ropes=(gguf_rope(facts, checkpoint, 10_000.0, fields["head_dim"]),),
        block="parallel_two_norms" if "blk.0.attn_norm_2.weight" in checkpoint.tensors else "parallel",
        activation="gelu",
        gated_mlp=False,
    )
    facts.raw("tensor_data_layout", None)
    facts.finish((), GGUF_IGNORED_PREFIXES)
    return spec


def split_heads(rows: NDArray[Any], spec: ModelSpec) -> NDArray[Any]:
    """Queries, keys and values, stored group by group (each key head's queries, its key, its value), to all
    queries, all keys, all values. One rule for one key head, groups, and a key head for each query."""
    K, E = spec.num_key_value_heads, spec.head_dim
    groups = rows.reshape(K, spec.num_attention_heads // K + 2, E, *rows.shape[1:])
    parts = (groups[:, :-2], groups[:, -2:-1], groups[:, -1:])
    return np.concatenate([part.reshape(-1, *rows.shape[1:]) for part in parts])


def transformer_names(prefix: str) -> dict[str, str]:
    """The names that Falcon and BLOOM share."""
    at = prefix + "h.{}."
    names = {
        "final_norm": prefix + "ln_f",
        "layers.{}.attn_norm": at + "input_layernorm",
        "layers.{}.mlp_norm": at + "post_attention_layernorm",
        "layers.{}.attn.qkv": at + "self_attention.query_key_value",
        "layers.{}.attn.o": at + "self_attention.dense",
        "layers.{}.mlp.up": at + "mlp.dense_h_to_4h",
        "layers.{}.mlp.down": at + "mlp.dense_4h_to_h",
        "embed_norm": prefix + "word_embeddings_layernorm",
    }
    return {
        "embed.weight": prefix + "word_embeddings.weight",
        "head.weight": "lm_head.weight",
        **{
            f"{ours}.{kind}": f"{theirs}.{kind}"
            for ours, theirs in names.items()
            for kind in ("weight", "bias")
        },
    }


SPLITS = {f"layers.{{}}.attn.qkv.{kind}": split_heads for kind in ("weight", "bias")}
_TWO_NORMS = {
    f"layers.{{}}.{half}_norm.{kind}": f"transformer.h.{{}}.ln_{half}.{kind}"
    for half in ("attn", "mlp")
    for kind in ("weight", "bias")
}
# The file's first norm is the MLP's, its second the attention's.
_GGUF_TWO_NORMS = {
    f"layers.{{}}.{ours}.{kind}": f"blk.{{}}.{theirs}.{kind}"
    for ours, theirs in (("mlp_norm", "attn_norm"), ("attn_norm", "attn_norm_2"))
    for kind in ("weight", "bias")
}

FAMILIES = {
    "hf": {
        "falcon": Family(
            _from_hf,
            transformer_names("transformer."),
            fixups=SPLITS,
            layouts=(("transformer.h.0.ln_attn.weight", _TWO_NORMS),),
        )
    },
    "gguf": {
        "falcon": Family(
            _from_gguf,
            GGUF_BIASED_NAMES | GGUF_FUSED,
            layouts=(("blk.0.attn_norm_2.weight", _GGUF_TWO_NORMS),),
        )
    },
}
