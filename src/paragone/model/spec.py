"""What a model family is, as values: the one decoder builds every model from a `ModelSpec`.

A spec is read from a checkpoint's own configuration by a family module; nothing else ever asks for a
family's name. Field names are those of Hugging Face's config.json where it has one.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from paragone import limits
from paragone.errors import BadConfiguration

Attention = Literal["full", "sliding", "chunked"]
Activation = Literal["silu", "gelu_tanh", "gelu", "gelu_new", "gelu_bloom"]
# The neutral names of each kind's norms, in the order in which the block takes them.
BLOCK_NORMS = {
    "pre": ("attn_norm", "mlp_norm"),
    "sandwich": ("attn_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm"),
    "parallel": ("attn_norm",),
    "parallel_two_norms": ("attn_norm", "mlp_norm"),
}


@dataclass(frozen=True)
class NormSpec:
    """ "rms": RMSNorm (arXiv 1910.07467), x̂ = x / sqrt(mean(x²) + eps), always in float32. "layer": LayerNorm
    (arXiv 1607.06450) with a bias.

    `scale_in_float32` chooses between Llama's order, weight * x̂.to(dtype), and Gemma's,
    (x̂ * weight).to(dtype); in bfloat16 the two round differently.
    """

    eps: float = 1e-5
    scale_in_float32: bool = False
    kind: Literal["rms", "layer"] = "rms"


@dataclass(frozen=True)
class RopeSpec:
    """Rotary positions (arXiv 2104.09864), of the first `dim` numbers of a head or all of them. In the
    half-split layout number i turns with i + dim / 2; with `pairs`, 2i turns with 2i + 1.
    """

    theta: float = 10_000.0
    scaling: Literal["none", "linear", "llama3", "yarn", "factors", "longrope", "dynamic"] = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    factors: tuple[float, ...] = ()  # per frequency, divided by: what GGUF's rope_freqs.weight holds
    long_factors: tuple[float, ...] = ()  # longrope: those beyond the original context; `factors` within
    max_position_embeddings: int = 0  # dynamic: where the scaling begins
    partial: float = 1.0  # the share of a head that `dim` is
    dim: int | None = None
    pairs: bool = False


@dataclass(frozen=True)
class MoESpec:
    """A mixture of experts (arXiv 2101.03961, 2401.04088): a router chooses `top_k` of the MLPs a token.

    "softmax": probabilities over all experts, the chosen ones' renormalised where `renormalise`; in float32
    where `float32_weights`, else rounded to the activations' type. "sigmoid": of the chosen logits, and the
    input is scaled, not the output. `shared_intermediate_size` is the width of an expert that sees every
    token, weighed by a sigmoid of its own where `shared_gate`.
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    score: Literal["softmax", "sigmoid"] = "softmax"
    renormalise: bool = False
    float32_weights: bool = False
    shared_intermediate_size: int = 0
    shared_gate: bool = False


@dataclass(frozen=True)
class LayerSpec:
    """One layer: what it attends to, which of the model's ropes turns its queries and keys, and whether its
    MLP is a mixture of experts."""

    attention: Attention = "full"
    rope: int | None = 0
    moe: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only language model. Sizes are counts of numbers; `layers` has one entry per layer."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    layers: tuple[LayerSpec, ...]
    norm: NormSpec = NormSpec()
    ropes: tuple[RopeSpec, ...] = (RopeSpec(),)
    block: Literal["pre", "sandwich", "parallel", "parallel_two_norms"] = "pre"
    activation: Activation = "silu"
    gated_mlp: bool = True
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    qk_norm: Literal["weighted", "l2"] | None = None  # before rotation with weights; l2 after it, without
    query_scale: float | None = None  # None: head_dim ** -0.5
    sliding_window: int | None = None
    attention_chunk: int | None = None  # "chunked" layers see their own chunk of so many slots
    temperature_floor: int = 0  # Llama 4: queries of layers without rope grow with the logarithm of the slot
    temperature_scale: float = 0.0
    alibi: Literal["bloom", "falcon"] | None = None
    moe: MoESpec | None = None
    embedding_norm: bool = False
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    embedding_scale: float | None = None
    tie_word_embeddings: bool = False
    eos_token_ids: tuple[int, ...] = field(default=(), compare=False)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def attention_scale(self) -> float:
        """What the products of queries and keys are multiplied by."""
        return self.query_scale if self.query_scale is not None else self.head_dim**-0.5

    def reach(self, layer: LayerSpec) -> int | None:
        """How many slots, its own among them, a query of a layer sees at most; None: all."""
        return {"sliding": self.sliding_window, "chunked": self.attention_chunk}.get(layer.attention)

    def kv_bytes(self, tokens: int, bytes_per_number: int) -> int:
        """Bytes of the keys and values that later tokens can see, of a text of so many tokens."""
        seen = sum(min(tokens, self.reach(layer) or tokens) for layer in self.layers)
        return 2 * seen * self.num_key_value_heads * self.head_dim * bytes_per_number

    def checked(self, source: object) -> "ModelSpec":
        """Itself, or BadConfiguration naming `source` where the sizes cannot be a model's."""
        for name, value, most in (
            ("vocab_size", self.vocab_size, limits.VOCAB_SIZE),
            ("hidden_size", self.hidden_size, limits.HIDDEN_SIZE),
            ("intermediate_size", self.intermediate_size, limits.HIDDEN_SIZE),
            ("num_attention_heads", self.num_attention_heads, limits.HEADS),
            ("num_key_value_heads", self.num_key_value_heads, limits.HEADS),
            ("head_dim", self.head_dim, limits.HIDDEN_SIZE),
            ("max_position_embeddings", self.max_position_embeddings, limits.CONTEXT_LENGTH),
            ("num_hidden_layers", self.num_layers, limits.LAYERS),
        ):
            if not 1 <= value <= most:
                raise BadConfiguration(f"{source}: {name} = {value} is not between 1 and {most}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise BadConfiguration(
                f"{source}: {self.num_attention_heads} query heads cannot share "
                f"{self.num_key_value_heads} key/value heads evenly"
            )
        if self.head_dim % 2:
            raise BadConfiguration(f"{source}: head_dim = {self.head_dim} is odd; rotary needs pairs")
        for rope in self.ropes:
            self._check_rope(rope, source)
        moe = self.moe
        if moe is not None and not 1 <= moe.top_k <= moe.num_experts:
            raise BadConfiguration(f"{source}: {moe.top_k} of {moe.num_experts} experts cannot be chosen")
        if moe is not None and not 1 <= moe.intermediate_size <= limits.HIDDEN_SIZE:
            raise BadConfiguration(f"{source}: experts of width {moe.intermediate_size} cannot be")
        if not math.isfinite(self.attention_scale):
            raise BadConfiguration(f"{source}: attention scale is not finite")
        return self

    def _check_rope(self, rope: RopeSpec, source: object) -> None:
        dim = self.head_dim if rope.dim is None else rope.dim
        if rope.theta <= 1:
            raise BadConfiguration(f"{source}: rope theta = {rope.theta} is not above 1")
        if dim % 2 or not 2 <= dim <= self.head_dim:
            raise BadConfiguration(
                f"{source}: rope turns {dim} of {self.head_dim} numbers, not pairs of them"
            )
        if rope.scaling == "longrope" and {len(rope.factors), len(rope.long_factors)} != {dim // 2}:
            found = f"{len(rope.factors)} short and {len(rope.long_factors)} long factors"
            raise BadConfiguration(f"{source}: rope has {found}, not {dim // 2} of each")
        if rope.scaling == "longrope" and rope.original_max_position_embeddings < 2:
            raise BadConfiguration(f"{source}: longrope needs an original context of two tokens or more")
        if rope.scaling == "dynamic" and dim < 4:
            raise BadConfiguration(f"{source}: dynamic rope scaling needs heads of four numbers or more")
