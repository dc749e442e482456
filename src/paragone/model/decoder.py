"""The one decoder. Which norms, ropes, windows and activations it has is read from its spec."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from paragone.model.attention import Contiguous, Memory, Step, View, make_view
from paragone.model.block import Block
from paragone.model.cache import KVCache
from paragone.model.linear import Embedding, Linear, Rows
from paragone.model.norm import Norm
from paragone.model.position import Rope, alibi_bias, alibi_slopes
from paragone.model.spec import ModelSpec


class Decoder:
    """A decoder-only transformer. `embed` looks tokens up, `head` gives logits, activations are `dtype`."""

    def __init__(
        self,
        spec: ModelSpec,
        embed: Embedding,
        blocks: list[Block],
        final_norm: Norm,
        head: Linear,
        dtype: torch.dtype,
        embedding_norm: Norm | None = None,
    ) -> None:
        self.spec, self.embed, self.final_norm, self.head = spec, embed, final_norm, head
        self.embedding_norm = embedding_norm
        self.slopes = alibi_slopes(spec.num_attention_heads) if spec.alibi else None
        self.dtype, self.blocks = dtype, blocks
        scale = spec.embedding_scale
        self._scale = None if scale is None else float(torch.tensor(scale, dtype=dtype))
        self.ropes = [Rope(rope, spec.head_dim) for rope in spec.ropes]
        self._turning = [rope for rope in self.ropes if rope.depends_on_length]

    @property
    def device(self) -> torch.device:
        return self.final_norm.weight.device

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights in memory; tied ones count once."""
        return self._outer_bytes + sum(m.weight_bytes for block in self.blocks for m in block.linears())

    @property
    def _outer_bytes(self) -> int:
        """All that is no matrix of a block."""
        vectors = [v for block in self.blocks for v in block.vectors()] + self.final_norm.vectors()
        vectors += self.embedding_norm.vectors() if self.embedding_norm else []
        vectors += [self.head.bias] if self.head.bias is not None else []
        return sum(v.nbytes for v in vectors) + self.head.weight_bytes + self.embedding_bytes

    @property
    def embedding_bytes(self) -> int:
        """Bytes in memory of an embedding that is neither left in the file nor the head's own weight."""
        weight = self.embed.weight
        is_head = any(weight is part for part in getattr(self.head, "parts", ()))
        return 0 if weight is None or is_head else weight.nbytes

    @property
    def decode_bytes(self) -> int:
        """Bytes of weights that decoding one token reads: of the embedding one row, of experts the chosen."""
        return self._outer_bytes - self.embedding_bytes + sum(block.decode_bytes for block in self.blocks)

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for `batch` rows of up to `capacity` tokens."""
        return KVCache(self.spec, batch, capacity, self.dtype, self.device)

    @property
    def turns_by_length(self) -> bool:
        """Whether there is more than one regime."""
        return bool(self._turning)

    def regime(self, longest: int) -> tuple[int, ...]:
        """How the ropes turn a text of so many tokens. A cache serves one regime only."""
        return tuple([rope.regime(longest) for rope in self._turning])

    def hidden(
        self,
        ids_BT: Tensor,
        cache: KVCache | None = None,
        longest: int | None = None,
    ) -> Tensor:
        """Final hidden states (B, T, D). Appends to the cache. `longest`: the length of the whole text of
        which these tokens are a part."""
        T = ids_BT.shape[1]
        start = 0 if cache is None else cache.length
        slots = torch.arange(start, start + T, device=ids_BT.device)[None]
        cos_sin = [rope.cos_sin(slots, self.dtype, longest) for rope in self.ropes]
        views = self._views(start, T, ids_BT.device)
        if cache is not None:
            cache.reserve(start + T)
        hidden = self.run(ids_BT, cos_sin, slots, Contiguous(self.spec, cache, views))
        if cache is not None:
            cache.length = start + T
        return hidden

    def run(
        self, ids_BT: Tensor, cos_sin: list[tuple[Tensor, Tensor]], slots_BT: Tensor, memory: Memory
    ) -> Tensor:
        """Final hidden states (B, T, D), with each rope's cosines and sines made and the keys and values kept
        in a memory of any kind."""
        x = self.embedded(ids_BT)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        for index, layer in enumerate(self.spec.layers):
            turn = None if layer.rope is None else cos_sin[layer.rope]
            x = self.blocks[index](x, Step(turn, slots_BT, memory, index))
        return self.final_norm(x)

    def embedded(self, ids_BT: Tensor) -> Tensor:
        """Token embeddings (B, T, D), scaled where the model scales them."""
        x = self.embed(ids_BT)
        if self._scale is not None:
            x = x * torch.tensor(self._scale, dtype=self.dtype, device=x.device)
        return x

    def put_embedded(self, ids: Sequence[int], to: Rows) -> None:
        """Token embeddings (N, D) in float32, scaled."""
        self.embed.put_rows(ids, to)
        if self._scale is not None:
            to.tensor.mul_(self._scale)

    def _views(self, start: int, length: int, device: torch.device) -> dict[str, View]:
        """What each kind of layer that the model has may see."""
        spec = self.spec
        views: dict[str, View] = {}
        for kind in {layer.attention for layer in spec.layers}:
            window = spec.sliding_window if kind == "sliding" else None
            chunk = spec.attention_chunk if kind == "chunked" else None
            views[kind] = make_view(start, length, window, chunk, device)
        if spec.alibi is not None and self.slopes is not None:
            slots = torch.arange(start + length, device=device)[None]
            slopes = self.slopes.to(device)
            bias = alibi_bias(spec.alibi, slopes, slots, spec.attention_scale, self.dtype)
            views = {kind: replace(view, bias=bias) for kind, view in views.items()}
        return views

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) to (..., V)."""
        logits = self.head(hidden)
        cap = self.spec.final_logit_softcapping
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def __call__(self, ids_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) of every token."""
        return self.logits(self.hidden(ids_BT, cache))
