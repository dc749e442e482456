"""The one decoder. Which norms, ropes, windows and activations it has is read from its spec."""

import torch
from torch import Tensor

from paragone.model.attention import Attention, View, make_view
from paragone.model.cache import KVCache
from paragone.model.linear import Embedding, Linear
from paragone.model.position import Rope
from paragone.model.spec import ModelSpec, NormSpec
from paragone.ops.activation import gated
from paragone.ops.norm import rms_norm


class RMSNorm:
    """RMSNorm with a whole weight (1 + w for Gemma's files); float32 where the spec scales in float32."""

    def __init__(self, spec: NormSpec, weight: Tensor) -> None:
        self.eps, self.weight = spec.eps, weight

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class MLP:
    """down(act(gate x) * up x); gate and up come from one product."""

    def __init__(self, activation: str, gate_up: Linear, down: Linear) -> None:
        self.activation, self.gate_up, self.down = activation, gate_up, down

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(gated(self.gate_up(x), self.activation))


class Block:
    """Pre-norm block: x += A(norm x); x += F(norm x)."""

    def __init__(self, attn_norm: RMSNorm, attn: Attention, mlp_norm: RMSNorm, mlp: MLP) -> None:
        self.attn_norm, self.attn, self.mlp_norm, self.mlp = attn_norm, attn, mlp_norm, mlp

    def __call__(
        self, x: Tensor, cos_sin: tuple[Tensor, Tensor], view: View, cache: KVCache | None, layer: int
    ) -> Tensor:
        x = x + self.attn(self.attn_norm(x), cos_sin, view, cache, layer)
        return x + self.mlp(self.mlp_norm(x))

    def linears(self) -> tuple[Linear, ...]:
        """The block's matrices."""
        return self.attn.qkv, self.attn.o, self.mlp.gate_up, self.mlp.down

    def vectors(self) -> list[Tensor]:
        """The block's other weights."""
        norms = [self.attn_norm.weight, self.mlp_norm.weight]
        biases = [linear.bias for linear in self.linears()]
        return [v for v in (*norms, *biases, self.attn.qk_norm) if v is not None]


class SandwichBlock(Block):
    """Norms on both sides: x += post(A(norm x)); x += post(F(norm x))."""

    def __init__(
        self,
        attn_norm: RMSNorm,
        attn: Attention,
        mlp_norm: RMSNorm,
        mlp: MLP,
        attn_post_norm: RMSNorm,
        mlp_post_norm: RMSNorm,
    ) -> None:
        super().__init__(attn_norm, attn, mlp_norm, mlp)
        self.attn_post_norm, self.mlp_post_norm = attn_post_norm, mlp_post_norm

    def __call__(
        self, x: Tensor, cos_sin: tuple[Tensor, Tensor], view: View, cache: KVCache | None, layer: int
    ) -> Tensor:
        x = x + self.attn_post_norm(self.attn(self.attn_norm(x), cos_sin, view, cache, layer))
        return x + self.mlp_post_norm(self.mlp(self.mlp_norm(x)))

    def vectors(self) -> list[Tensor]:
        """The block's other weights."""
        return [*super().vectors(), self.attn_post_norm.weight, self.mlp_post_norm.weight]


class Decoder:
    """A decoder-only transformer. `embed` looks tokens up, `head` gives logits, activations are `dtype`."""

    def __init__(
        self,
        spec: ModelSpec,
        embed: Embedding,
        blocks: list[Block],
        final_norm: RMSNorm,
        head: Linear,
        dtype: torch.dtype,
    ) -> None:
        self.spec, self.embed, self.final_norm, self.head = spec, embed, final_norm, head
        self.dtype, self.blocks = dtype, blocks
        self.ropes = [Rope(rope, spec.head_dim) for rope in spec.ropes]

    @property
    def device(self) -> torch.device:
        return self.final_norm.weight.device

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights in memory; tied ones count once."""
        blocks = sum(m.weight_bytes for block in self.blocks for m in block.linears())
        vectors = sum(v.nbytes for block in self.blocks for v in block.vectors())
        return (
            blocks + vectors + self.final_norm.weight.nbytes + self.head.weight_bytes + self.embedding_bytes
        )

    @property
    def embedding_bytes(self) -> int:
        """Bytes in memory of an embedding that is neither left in the file nor the head's own weight."""
        weight = self.embed.weight
        is_head = any(weight is part for part in getattr(self.head, "parts", ()))
        return 0 if weight is None or is_head else weight.nbytes

    @property
    def decode_bytes(self) -> int:
        """Bytes of weights that decoding one token reads; of the embedding it reads one row."""
        return self.weight_bytes - self.embedding_bytes

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for `batch` rows of up to `capacity` tokens."""
        return KVCache(self.spec, batch, capacity, self.dtype, self.device)

    def hidden(
        self,
        ids_BT: Tensor,
        cache: KVCache | None = None,
        left_padding_B: Tensor | None = None,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states (B, T, D). Appends to the cache; positions are slots less the left padding
        unless given."""
        T = ids_BT.shape[1]
        start = 0 if cache is None else cache.length
        if positions_BT is None:
            positions_BT = torch.arange(start, start + T, device=ids_BT.device)[None]
            if left_padding_B is not None:
                positions_BT = (positions_BT - left_padding_B[:, None]).clamp_min(0)
        cos_sin = [rope.cos_sin(positions_BT, self.dtype) for rope in self.ropes]
        views = {
            kind: make_view(start, T, window, left_padding_B)
            for kind, window in (("full", None), ("sliding", self.spec.sliding_window))
        }
        x = self.embed(ids_BT)
        if self.spec.embedding_scale is not None:
            x = x * torch.tensor(self.spec.embedding_scale, dtype=self.dtype, device=x.device)
        if cache is not None:
            cache.reserve(start + T)
        for index, layer in enumerate(self.spec.layers):
            x = self.blocks[index](x, cos_sin[layer.rope], views[layer.attention], cache, index)
        if cache is not None:
            cache.length = start + T
        return self.final_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) to (..., V), in the activations' type or float32."""
        logits = self.head.unrounded(hidden)
        cap = self.spec.final_logit_softcapping
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def __call__(
        self,
        ids_BT: Tensor,
        cache: KVCache | None = None,
        left_padding_B: Tensor | None = None,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of every token."""
        return self.logits(self.hidden(ids_BT, cache, left_padding_B, positions_BT))
