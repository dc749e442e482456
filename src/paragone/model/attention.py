"""What each query may see, and the attention half of a block.

B batch, T tokens of this step, D model width, H query heads, K key/value heads, E head width, J = H + 2K
heads that come from one product: queries, keys, values.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from paragone.model.cache import KVCache
from paragone.model.linear import Linear
from paragone.model.spec import LayerSpec, ModelSpec
from paragone.ops.attention import attention
from paragone.ops.norm import head_norm_, l2_norm
from paragone.ops.rope import rotate_, rotate_pairs_


@dataclass(frozen=True)
class View:
    """What the queries of one step see, for one kind of layer: the slots from `first` on, up to their own,
    at most `window` of them. `allowed` (1, 1, T, keys) says it in full where slots are seen by chunks; `bias`
    (B, H, keys) is added to the scores of every key."""

    first: int
    window: int | None
    allowed: Tensor | None = None
    bias: Tensor | None = None


def make_view(
    start: int, length: int, window: int | None, chunk: int | None = None, device: torch.device | None = None
) -> View:
    """The view of `length` tokens that enter at slot `start`."""
    if chunk is None:
        return View(0 if window is None else max(0, start - window + 1), window)
    first = start // chunk * chunk
    if start + length <= first + chunk:
        return View(first, None)
    q = torch.arange(start, start + length, device=device)[:, None]
    k = torch.arange(first, start + length, device=device)
    return View(first, None, ((k <= q) & (k // chunk == q // chunk))[None, None])


class Memory(Protocol):
    """Where a step's keys and values go, and what its queries find there."""

    def attend(
        self, layer: int, q_BTHE: Tensor, kv_BTJE: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        """Keeps the tokens' keys and values (B, T, 2K, E), the keys first, as the layer's next; returns what
        their queries make of all that they see, (B, T, H, E)."""


class Contiguous:
    """A batch whose rows advance together, over a `KVCache` or, for a text all at once, over none."""

    def __init__(self, spec: ModelSpec, cache: KVCache | None, views: dict[str, View]) -> None:
        self.cache = cache
        self.views = [views[layer.attention] for layer in spec.layers]

    def attend(
        self, layer: int, q_BTHE: Tensor, kv_BTJE: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        view = self.views[layer]
        if self.cache is None:
            kv = kv_BTJE[:, view.first :].transpose(1, 2)
        else:
            kv = self.cache.extend(layer, kv_BTJE, view.first)
        k, v = kv.chunk(2, dim=1)
        return attention(q_BTHE, k, v, scale, view.window, view.allowed, softcap, view.bias)


class Step(NamedTuple):
    """What one layer needs in one step beside its input: its rope's cosines and sines, the slots of the
    tokens, where keys and values are kept, and its number there."""

    cos_sin: tuple[Tensor, Tensor] | None
    slots: Tensor  # broadcastable to (B, T)
    memory: Memory
    layer: int


class Attention:
    """Grouped-query attention."""

    def __init__(
        self, spec: ModelSpec, layer: LayerSpec, qkv: Linear, o: Linear, qk_norm: Tensor | None
    ) -> None:
        self.qkv, self.o = qkv, o
        self.qk_norm = qk_norm  # (H + K, E): the heads' own norm weights, query heads first
        self.num_heads, self.num_kv_heads = spec.num_attention_heads, spec.num_key_value_heads
        self.head_dim, self.scale, self.eps = spec.head_dim, spec.attention_scale, spec.norm.eps
        self.softcap = spec.attn_logit_softcapping
        self.rope = None if layer.rope is None else spec.ropes[layer.rope]
        self.l2_norm = spec.qk_norm == "l2" and self.rope is not None
        self.temperature = (spec.temperature_floor, spec.temperature_scale) if self.rope is None else (0, 0.0)

    def __call__(self, x_BTD: Tensor, step: Step) -> Tensor:
        B, T, _ = x_BTD.shape
        H, K, E = self.num_heads, self.num_kv_heads, self.head_dim
        heads_BTJE = self.qkv(x_BTD).view(B, T, H + 2 * K, E)
        qk = heads_BTJE[:, :, : H + K]
        if self.qk_norm is not None:
            head_norm_(qk, self.qk_norm, self.eps)
        if self.rope is not None and step.cos_sin is not None:
            turned = qk if self.rope.dim is None else qk[..., : self.rope.dim]
            (rotate_pairs_ if self.rope.pairs else rotate_)(turned, *step.cos_sin)
        if self.l2_norm:
            qk.copy_(l2_norm(qk, self.eps))
        q, kv = heads_BTJE[:, :, :H], heads_BTJE[:, :, H:]
        if self.temperature[0]:
            self._warm(q, step.slots)
        out_BTHE = step.memory.attend(step.layer, q, kv, self.scale, self.softcap)
        return self.o(out_BTHE.reshape(B, T, H * E))

    def _warm(self, q_BTHE: Tensor, slots_BT: Tensor) -> None:
        """Queries grow with the logarithm of their slot, so that attention stays sharp over long contexts."""
        floor, scale = self.temperature
        factors = torch.log1p(torch.floor((slots_BT.float() + 1.0) / floor)) * scale + 1.0
        q_BTHE.copy_(q_BTHE * factors[..., None, None])
