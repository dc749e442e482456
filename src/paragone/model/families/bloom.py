"""BLOOM and BLOOMZ: ALiBi instead of rotary positions, a LayerNorm on the embeddings, GELU MLPs, biases.

Made by the BigScience workshop. Source: arXiv 2211.05100; transformers' `BloomForCausalLM` for the numbers.
"""

from paragone.checkpoint.checkpoint import Checkpoint
from paragone.checkpoint.facts import Facts
from paragone.model.families import Family
from paragone.model.families.common import HF_IGNORED, eos_ids, layer_count
from paragone.model.families.falcon import SPLITS, transformer_names
from paragone.model.families.gguf import GGUF_BIASED_NAMES, GGUF_FUSED, GGUF_IGNORED_PREFIXES, gguf_fields
from paragone.model.spec import LayerSpec, ModelSpec, NormSpec

# How the training framework computed, and old names; none changes the numbers.
IGNORED = {
    "attention_softmax_in_fp32", "bias_dropout_fusion", "hidden_dropout", "masked_softmax_fusion", "n_inner",
    "offset_alibi", "seq_length", "skip_bias_add", "skip_bias_add_qkv", "slow_but_exact", "unk_token_id",
}  # fmt: skip


def _from_hf(facts: Facts, _: Checkpoint) -> ModelSpec:
    integer = facts.integer
    hidden = integer("hidden_size", integer("n_embed", None) or 64)
    heads = integer("n_head", integer("num_attention_heads", None) or 8)
    layers = layer_count(facts, "n_layer", integer("num_hidden_layers", None, most=1024) or 2)
    spec = ModelSpec(
        family="bloom",
        vocab_size=integer("vocab_size", 250_880),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=max(hidden // heads, 1),
        max_position_embeddings=integer("seq_length", 2048),
        layers=(LayerSpec(rope=None),) * layers,
        norm=NormSpec(facts.number("layer_norm_epsilon", 1e-5), kind="layer"),
        ropes=(),
        alibi="bloom",
        activation="gelu_bloom",
        gated_mlp=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        embedding_norm=True,
        tie_word_embeddings=facts.flag("tie_word_embeddings", True),
        eos_token_ids=eos_ids(facts),
    )
    facts.expect("apply_residual_connection_post_layernorm", False)
    facts.finish(HF_IGNORED | IGNORED)
    return spec


def _from_gguf(facts: Facts, checkpoint: Checkpoint) -> ModelSpec:
    fields = gguf_fields(facts, checkpoint)
    spec = ModelSpec(
        family="bloom",
        **fields,
        layers=(LayerSpec(rope=None),) * layer_count(facts, "block_count"),
        norm=NormSpec(facts.number("attention.layer_norm_epsilon"), kind="layer"),
        ropes=(),
        alibi="bloom",
        activation="gelu_bloom",
        gated_mlp=False,
        embedding_norm=True,
    )
    facts.finish((), GGUF_IGNORED_PREFIXES)
    return spec


FAMILIES = {
    "hf": {
        "bloom": Family(
            _from_hf,
            transformer_names("transformer."),
            fixups=SPLITS,
            layouts=(("word_embeddings.weight", transformer_names("")),),  # as the base models are published
        )
    },
    "gguf": {"bloom": Family(_from_gguf, GGUF_BIASED_NAMES | GGUF_FUSED)},
}
