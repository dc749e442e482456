"""What the families share when they are read from GGUF: names, ropes, experts."""

from dataclasses import replace
from typing import Any

from paragone.checkpoint.checkpoint import Checkpoint
from paragone.checkpoint.facts import Facts
from paragone.errors import BadConfiguration, MalformedData
from paragone.model.spec import LayerSpec, MoESpec, RopeSpec

GGUF_NAMES = {
    "embed.weight": "token_embd.weight",
    "final_norm.weight": "output_norm.weight",
    "head.weight": "output.weight",
    "layers.{}.attn_norm.weight": "blk.{}.attn_norm.weight",
    "layers.{}.attn_post_norm.weight": "blk.{}.post_attention_norm.weight",
    "layers.{}.mlp_norm.weight": "blk.{}.ffn_norm.weight",
    "layers.{}.mlp_post_norm.weight": "blk.{}.post_ffw_norm.weight",
    "layers.{}.attn.q_norm.weight": "blk.{}.attn_q_norm.weight",
    "layers.{}.attn.k_norm.weight": "blk.{}.attn_k_norm.weight",
    **{
        f"layers.{{}}.{ours}.{kind}": f"blk.{{}}.{theirs}.{kind}"
        for kind in ("weight", "bias")
        for ours, theirs in {
            "attn.q": "attn_q",
            "attn.k": "attn_k",
            "attn.v": "attn_v",
            "attn.o": "attn_output",
            "mlp.gate": "ffn_gate",
            "mlp.up": "ffn_up",
            "mlp.down": "ffn_down",
        }.items()
    },
}

# Architectures with biased norms and, some, one matrix for queries, keys and values.
GGUF_BIASED_NAMES = GGUF_NAMES | {
    "head.bias": "output.bias",
    **{
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for kind in ("weight", "bias")
        for ours, theirs in {
            "embed_norm": "token_embd_norm",
            "final_norm": "output_norm",
            "layers.{}.attn_norm": "blk.{}.attn_norm",
            "layers.{}.mlp_norm": "blk.{}.ffn_norm",
        }.items()
    },
}
GGUF_FUSED = {f"layers.{{}}.attn.qkv.{kind}": f"blk.{{}}.attn_qkv.{kind}" for kind in ("weight", "bias")}
GGUF_MOE_NAMES = GGUF_NAMES | {
    "layers.{}.moe.router.weight": "blk.{}.ffn_gate_inp.weight",
    "layers.{}.moe.shared_gate.weight": "blk.{}.ffn_gate_inp_shexp.weight",
    **{
        f"layers.{{}}.moe.{{}}.{p}.weight": f"blk.{{}}.ffn_{p}_exps.weight[{{}}]"
        for p in ("gate", "up", "down")
    },
    **{
        f"layers.{{}}.moe.shared.{p}.weight": f"blk.{{}}.ffn_{p}_shexp.weight" for p in ("gate", "up", "down")
    },
}

# Files from before stacks keep every expert by itself: (a tensor that tells it, the names that differ).
GGUF_SINGLE_EXPERTS = (
    "blk.0.ffn_gate.0.weight",
    {f"layers.{{}}.moe.{{}}.{p}.weight": f"blk.{{}}.ffn_{p}.{{}}.weight" for p in ("gate", "up", "down")},
)

# GGUF metadata about the file, its origin and its tokenizer, not about the arithmetic.
GGUF_IGNORED_PREFIXES = ("general.", "tokenizer.", "quantize.", "split.", "imatrix.")


def gguf_rope(
    facts: Facts, checkpoint: Checkpoint, theta: float, head_dim: int, *, partial: bool = False
) -> RopeSpec:
    """The rope of GGUF metadata. Llama 3's scaling is a tensor of divisors, not a key; so is longrope's. With
    `partial` the metadata say how much of a head is turned."""
    if partial:
        turned = facts.integer("rope.dimension_count", head_dim, most=head_dim)
        whole = _gguf_rope(facts, checkpoint, theta, turned)
        return whole if turned == head_dim else replace(whole, dim=turned)
    facts.expect("rope.dimension_count", head_dim)
    return _gguf_rope(facts, checkpoint, theta, head_dim)


def _gguf_rope(facts: Facts, checkpoint: Checkpoint, theta: float, head_dim: int) -> RopeSpec:
    theta = facts.number("rope.freq_base", theta)
    kind = facts.text("rope.scaling.type", "none")
    factor = facts.number("rope.scaling.factor", None, positive=False) or 1.0
    if factor <= 0:
        raise facts.fail("rope.scaling.factor", f"is {factor}, not positive")
    original = facts.integer("rope.scaling.original_context_length", None)
    facts.raw("rope.scaling.finetuned", None)
    attention_factor = facts.number("rope.scaling.attn_factor", None)
    if "rope_freqs.weight" in checkpoint.tensors:
        divisors = _stored_divisors(facts, checkpoint, "rope_freqs.weight", head_dim // 2)
        return RopeSpec(theta, "factors", factors=divisors)
    if "rope_factors_short.weight" in checkpoint.tensors:
        context = facts.integer("context_length")
        original = original or context
        return RopeSpec(
            theta,
            "longrope",
            max(context / original, 1.0),
            original_max_position_embeddings=original,
            attention_factor=attention_factor,
            factors=_stored_divisors(facts, checkpoint, "rope_factors_short.weight", head_dim // 2),
            long_factors=_stored_divisors(facts, checkpoint, "rope_factors_long.weight", head_dim // 2),
        )
    if kind == "none":
        return RopeSpec(theta)
    if kind == "linear":
        return RopeSpec(theta, "linear", factor=factor)
    if kind == "yarn" and original:
        return RopeSpec(theta, "yarn", factor, original_max_position_embeddings=original)
    raise BadConfiguration(f"{facts.path}: rope scaling {kind!r} is not supported. Known: linear, yarn.")


def _stored_divisors(facts: Facts, checkpoint: Checkpoint, name: str, count: int) -> tuple[float, ...]:
    """A tensor of positive F32 numbers, one a frequency."""
    tensor = checkpoint.tensors.get(name)
    if tensor is None or tensor.shape != (count,) or tensor.type.name != "F32":
        raise facts.fail(name, f"does not hold {count} F32 divisors")
    values = tuple(float(v) for v in tensor.rows())
    if not all(v > 0 for v in values):
        raise facts.fail(name, f"does not hold {count} positive divisors")
    return values


def gguf_fields(facts: Facts, checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields of ModelSpec that every architecture's GGUF metadata name alike."""
    hidden, heads = facts.integer("embedding_length"), facts.integer("attention.head_count")
    head_dim = facts.integer("attention.key_length", None) or max(hidden // heads, 1)
    facts.expect("attention.value_length", head_dim)
    facts.integer("vocab_size", None)
    embedding = checkpoint.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise MalformedData(f"{checkpoint.path}: the tensor token_embd.weight is missing or no matrix")
    return {
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": facts.integer("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": facts.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": facts.integer("context_length"),
        "qkv_bias": bool({"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"} & checkpoint.tensors.keys()),
        "o_bias": "blk.0.attn_output.bias" in checkpoint.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in checkpoint.tensors,
        "qk_norm": "weighted" if "blk.0.attn_q_norm.weight" in checkpoint.tensors else None,
        "tie_word_embeddings": "output.weight" not in checkpoint.tensors,
    }


def gguf_moe(facts: Facts, checkpoint: Checkpoint, width: int, **kind: Any) -> MoESpec | None:
    """The mixture of GGUF metadata, or None. `width` is that of an expert where the metadata do not say."""
    experts = facts.integer("expert_count", 0, least=0, most=1024)
    chosen = facts.integer("expert_used_count", 0, least=0, most=1024)
    width = facts.integer("expert_feed_forward_length", width)
    shared = facts.integer("expert_shared_feed_forward_length", 0, least=0)
    if not experts:
        return None
    if not 0 < chosen <= experts:
        raise facts.fail("expert_used_count", f"is {chosen} of {experts} experts")
    gate = "blk.0.ffn_gate_inp_shexp.weight" in checkpoint.tensors
    return MoESpec(experts, chosen, width, shared_intermediate_size=shared, shared_gate=gate, **kind)


def gguf_moe_layers(checkpoint: Checkpoint, count: int, layer: LayerSpec) -> tuple[LayerSpec, ...]:
    """Layers of which those with a router are mixtures."""
    routers = [f"blk.{i}.ffn_gate_inp.weight" in checkpoint.tensors for i in range(count)]
    return tuple(replace(layer, moe=routed) for routed in routers)
