"""What the families share when they are read from config.json: names, ignored keys, ropes, layers."""

from dataclasses import replace
from typing import Any

from paragone import limits
from paragone.checkpoint.facts import Facts
from paragone.errors import BadConfiguration
from paragone.model.spec import LayerSpec, RopeSpec

# Neutral names. `qkv` and `gate_up` are one product here; files hold the parts.
HF_NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "final_norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "layers.{}.attn_norm.weight": "model.layers.{}.input_layernorm.weight",
    "layers.{}.mlp_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "layers.{}.attn.q.weight": "model.layers.{}.self_attn.q_proj.weight",
    "layers.{}.attn.k.weight": "model.layers.{}.self_attn.k_proj.weight",
    "layers.{}.attn.v.weight": "model.layers.{}.self_attn.v_proj.weight",
    "layers.{}.attn.o.weight": "model.layers.{}.self_attn.o_proj.weight",
    "layers.{}.attn.q.bias": "model.layers.{}.self_attn.q_proj.bias",
    "layers.{}.attn.k.bias": "model.layers.{}.self_attn.k_proj.bias",
    "layers.{}.attn.v.bias": "model.layers.{}.self_attn.v_proj.bias",
    "layers.{}.attn.o.bias": "model.layers.{}.self_attn.o_proj.bias",
    "layers.{}.attn.q_norm.weight": "model.layers.{}.self_attn.q_norm.weight",
    "layers.{}.attn.k_norm.weight": "model.layers.{}.self_attn.k_norm.weight",
    "layers.{}.mlp.gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "layers.{}.mlp.up.weight": "model.layers.{}.mlp.up_proj.weight",
    "layers.{}.mlp.down.weight": "model.layers.{}.mlp.down_proj.weight",
    "layers.{}.mlp.gate.bias": "model.layers.{}.mlp.gate_proj.bias",
    "layers.{}.mlp.up.bias": "model.layers.{}.mlp.up_proj.bias",
    "layers.{}.mlp.down.bias": "model.layers.{}.mlp.down_proj.bias",
}

# Keys of config.json that say nothing about the arithmetic of a forward pass.
HF_IGNORED = frozenset(
    [
        "_attn_implementation_autoset",
        "_name_or_path",
        "add_cross_attention",
        "architectures",
        "attention_dropout",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "chunk_size_feed_forward",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "id2label",
        "initializer_range",
        "is_llama_config",
        "keys_to_ignore_at_inference",
        "label2id",
        "length_penalty",
        "max_length",
        "min_length",
        "model_type",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "pad_token_id",
        "prefix",
        "pretraining_tp",
        "problem_type",
        "pruned_heads",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tokenizer_class",
        "top_k",
        "top_p",
        "quantization_config",  # checkpoint/gptq.py takes it
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "typical_p",
        "unsloth_fixed",
        "unsloth_version",
        "use_bfloat16",
        "use_cache",
    ]
)


def eos_ids(facts: Facts) -> tuple[int, ...]:
    """`eos_token_id` of a config.json: absent, one id, or several."""
    value = facts.raw("eos_token_id", [])
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise facts.fail("eos_token_id", "is neither an id nor a list of ids")
    return tuple(ids)


def hf_rope(
    facts: Facts,
    theta: float,
    max_positions: int,
    *,
    head_dim: int = 0,
    partial: float = 1.0,
    original: int | None = None,
) -> RopeSpec:
    """The rope of a config.json: `rope_parameters` (new), or `rope_theta` with `rope_scaling` (old)."""
    if facts.has("rope_parameters"):
        parameters = facts.sub("rope_parameters")
        facts.number("rope_theta", theta)
        facts.raw("rope_scaling", None)
        theta = parameters.number("rope_theta", theta)
    else:
        parameters = facts.sub("rope_scaling")
        theta = facts.number("rope_theta", theta)
    if head_dim:  # families that may turn a part of each head
        partial = facts.number("partial_rotary_factor", partial)
    spec = rope_from(parameters, theta, max_positions, partial, original)
    turned = int(head_dim * spec.partial)
    return replace(spec, dim=turned) if head_dim and turned < head_dim else spec


def rope_from(
    parameters: Facts,
    theta: float,
    max_positions: int,
    partial: float = 1.0,
    outer_original: int | None = None,
) -> RopeSpec:
    """One rope from its parameters. `type` is the old name of `rope_type`; an original context that stands
    beside the parameters wins over theirs."""
    kind = parameters.text("rope_type", parameters.text("type", "default"))
    parameters.raw("type", None)
    parameters.raw("rope_theta", None)
    number, integer = parameters.number, parameters.integer
    original = integer("original_max_position_embeddings", max_positions)
    original = outer_original or original
    if kind in ("default", "none"):
        spec = RopeSpec(theta)
    elif kind == "linear":
        spec = RopeSpec(theta, "linear", factor=number("factor"))
    elif kind == "llama3":
        low, high = number("low_freq_factor"), number("high_freq_factor")
        if low >= high:
            raise parameters.fail("low_freq_factor", f"is {low}, not below high_freq_factor {high}")
        spec = RopeSpec(
            theta, "llama3", number("factor"), low, high, original_max_position_embeddings=original
        )
    elif kind == "yarn":
        parameters.expect("truncate", True)
        parameters.expect("mscale", 1.0)
        parameters.expect("mscale_all_dim", 0.0)
        spec = RopeSpec(
            theta,
            "yarn",
            number("factor"),
            original_max_position_embeddings=original,
            beta_fast=number("beta_fast", 32.0),
            beta_slow=number("beta_slow", 1.0),
            attention_factor=number("attention_factor", None),
        )
    elif kind in ("longrope", "su"):
        spec = RopeSpec(
            theta,
            "longrope",
            number("factor", max(max_positions / original, 1.0)),
            original_max_position_embeddings=original,
            attention_factor=number("attention_factor", None),
            factors=_factors(parameters, "short_factor"),
            long_factors=_factors(parameters, "long_factor"),
        )
    elif kind == "dynamic":
        spec = RopeSpec(theta, "dynamic", number("factor"), max_position_embeddings=max_positions)
    else:
        known = "linear, llama3, yarn, longrope, dynamic"
        raise BadConfiguration(f"{parameters.path}: rope scaling {kind!r} is not supported. Known: {known}.")
    partial = parameters.number("partial_rotary_factor", partial)
    if not 0 < partial <= 1:
        raise parameters.fail("partial_rotary_factor", f"is {partial}, not a share of the head")
    parameters.finish(())
    return replace(spec, partial=partial)


def _factors(parameters: Facts, key: str) -> tuple[float, ...]:
    """A list of positive divisors, one a frequency."""
    values = parameters.raw(key)
    good = isinstance(values, list) and 0 < len(values) <= limits.HIDDEN_SIZE
    if not good or not all(isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for v in values):
        raise parameters.fail(key, "is not a list of positive numbers")
    return tuple(map(float, values))


def flags(facts: Facts, key: str, count: int, default: list[bool]) -> list[bool]:
    """One flag a layer: a list of `count` zeros and ones, or the default."""
    values = facts.raw(key, None)
    if not values:
        return default
    if not isinstance(values, list) or len(values) != count or not all(v in (0, 1) for v in values):
        raise facts.fail(key, f"is not a list of {count} zeros and ones")
    return [bool(v) for v in values]


def numbers_below(facts: Facts, key: str, count: int) -> set[int]:
    """Layers that are named by their numbers."""
    values = facts.raw(key, [])
    if not isinstance(values, list) or not all(type(v) is int and v >= 0 for v in values):
        raise facts.fail(key, "is not a list of layer numbers")
    return {v for v in values if v < count}


def hf_fields(facts: Facts, defaults: dict[str, Any]) -> dict[str, Any]:
    """The fields of ModelSpec that every config.json names alike; `defaults` are the class's own."""
    integer = facts.integer

    def size(key: str) -> int:
        value: int = integer(key, defaults[key]) if key in defaults else integer(key)
        return value

    hidden, heads = size("hidden_size"), size("num_attention_heads")
    return {
        "vocab_size": size("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": size("intermediate_size"),
        "num_attention_heads": heads,
        "num_key_value_heads": integer("num_key_value_heads", defaults.get("num_key_value_heads", heads)),
        "head_dim": integer("head_dim", defaults.get("head_dim", max(hidden // heads, 1))),
        "max_position_embeddings": size("max_position_embeddings"),
        "tie_word_embeddings": facts.flag("tie_word_embeddings", defaults.get("tie_word_embeddings", False)),
        "eos_token_ids": eos_ids(facts),
    }


def layer_count(facts: Facts, key: str, default: int | None = None) -> int:
    """The number of layers, small enough to make a list of."""
    count: int = (
        facts.integer(key, most=limits.LAYERS)
        if default is None
        else facts.integer(key, default, most=limits.LAYERS)
    )
    return count


def layer_types(facts: Facts, count: int, sliding: list[bool]) -> list[Any]:
    """config.json's `layer_types`, or what the older keys mean."""
    if not facts.has("layer_types"):
        return ["sliding_attention" if s else "full_attention" for s in sliding]
    types = facts.raw("layer_types")
    if not isinstance(types, list) or len(types) != count:
        raise facts.fail("layer_types", f"is not a list of {count} kinds")
    return types


def typed_layers(facts: Facts, types: list[Any], ropes: dict[str, int]) -> tuple[LayerSpec, ...]:
    """Layers from config.json's `layer_types`."""
    layers = []
    for kind in types:
        if kind == "full_attention":
            layers.append(LayerSpec("full", ropes["full"]))
        elif kind == "sliding_attention":
            layers.append(LayerSpec("sliding", ropes["sliding"]))
        else:
            raise facts.fail("layer_types", f"has the unknown kind {str(kind)[:40]!r}")
    return tuple(layers)
