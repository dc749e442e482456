"""What each query may see, and the attention half of a block.

B batch, T tokens of this step, D model width, H query heads, K key/value heads, E head width, J = H + 2K
heads that come from one product: queries, keys, values.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from paragone.model.cache import KVCache
from paragone.model.linear import Linear
from paragone.model.spec import ModelSpec
from paragone.ops.attention import attention
from paragone.ops.norm import head_norm_
from paragone.ops.rope import rotate_


@dataclass(frozen=True)
class View:
    """What the queries of one step see, for one kind of layer: the slots from `first` on, up to their own,
    at most `window` of them. `allowed` (B, 1, T, keys) says it in full where a batch is padded."""

    first: int
    window: int | None
    allowed: Tensor | None = None


def make_view(start: int, length: int, window: int | None, left_padding_B: Tensor | None) -> View:
    """The view of `length` tokens that enter at slot `start`. Padding is seen by nothing but itself, lest
    its own softmax be empty."""
    first = 0 if window is None else max(0, start - window + 1)
    if left_padding_B is None:
        return View(first, window)
    device = left_padding_B.device
    q = torch.arange(start, start + length, device=device)[:, None]
    k = torch.arange(first, start + length, device=device)
    allowed = k <= q if window is None else (k <= q) & (k > q - window)
    real = k >= left_padding_B[:, None]  # (B, keys)
    return View(first, window, (allowed & real[:, None, :] | (k == q))[:, None])


class Attention:
    """Grouped-query attention with rotary positions."""

    def __init__(self, spec: ModelSpec, qkv: Linear, o: Linear, qk_norm: Tensor | None) -> None:
        self.qkv, self.o = qkv, o
        self.qk_norm = qk_norm  # (H + K, E): the heads' own norm weights, query heads first
        self.num_heads, self.num_kv_heads = spec.num_attention_heads, spec.num_key_value_heads
        self.head_dim, self.scale, self.eps = spec.head_dim, spec.attention_scale, spec.norm.eps

    def __call__(
        self, x_BTD: Tensor, cos_sin: tuple[Tensor, Tensor], view: View, cache: KVCache | None, layer: int
    ) -> Tensor:
        B, T, _ = x_BTD.shape
        H, K, E = self.num_heads, self.num_kv_heads, self.head_dim
        heads_BTJE = self.qkv(x_BTD).view(B, T, H + 2 * K, E)
        qk = heads_BTJE[:, :, : H + K]
        if self.qk_norm is not None:
            head_norm_(qk, self.qk_norm, self.eps)
        rotate_(qk, *cos_sin)
        if cache is None:
            kv = heads_BTJE[:, view.first :, H:].transpose(1, 2)
        else:
            kv = cache.extend(layer, heads_BTJE[:, :, H:], view.first)
        q, k, v = heads_BTJE[:, :, :H], kv[:, :K], kv[:, K:]
        out_BTHE = attention(q, k, v, self.scale, view.window, view.allowed)
        return self.o(out_BTHE.reshape(B, T, H * E))
