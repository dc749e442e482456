"""What each query may see, and the attention half of a block.

B batch, T tokens of this step, S slots in all, D model width, H query heads, K key/value heads, E head
width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paragone.model.cache import KVCache
from paragone.model.linear import Linear
from paragone.model.spec import LayerSpec, ModelSpec
from paragone.ops.attention import attention
from paragone.ops.norm import rms_norm
from paragone.ops.rope import rotate


@dataclass(frozen=True)
class View:
    """What the queries of one step see of the slots, for one kind of layer.

    Keys are slots [first, start + T). `allowed` is boolean, broadcastable to (B, H, T, keys); None with
    `causal` is the lower triangle, None alone is everything.
    """

    first: int
    allowed: Tensor | None
    causal: bool


def make_view(
    start: int, length: int, window: int | None, left_padding_B: Tensor | None, device: torch.device
) -> View:
    """The view of `length` tokens that enter at slot `start`. A query sees itself and what is before it,
    at most `window` slots in all, and no padding (but padding sees itself, lest its softmax be empty)."""
    end = start + length
    first = 0 if window is None else max(0, start - window + 1)
    windowed = window is not None and end - first > window
    if left_padding_B is None and not windowed:
        if length == 1:
            return View(first, None, causal=False)
        if start == 0:
            return View(first, None, causal=True)
    q = torch.arange(start, end, device=device)[:, None]
    k = torch.arange(first, end, device=device)
    allowed = k <= q
    if window is not None:
        allowed &= k > q - window
    if left_padding_B is None:
        return View(first, allowed, causal=False)
    real = k >= left_padding_B[:, None]  # (B, keys)
    return View(first, (allowed & real[:, None, :] | (k == q))[:, None], causal=False)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; q, k and v come from one product."""

    def __init__(
        self, spec: ModelSpec, layer: LayerSpec, qkv: Linear, o: Linear, qk_norm: Tensor | None
    ) -> None:
        super().__init__()
        self.spec, self.layer, self.qkv, self.o = spec, layer, qkv, o
        self.turned = spec.num_attention_heads + spec.num_key_value_heads
        # (H + K, E): the heads' own weights, query heads first
        self.qk_norm = None if qk_norm is None else nn.Parameter(qk_norm, requires_grad=False)

    def forward(
        self, x_BTD: Tensor, cos_sin: tuple[Tensor, Tensor], view: View, cache: KVCache | None, index: int
    ) -> Tensor:
        B, T, _ = x_BTD.shape
        H, K, E = self.spec.num_attention_heads, self.spec.num_key_value_heads, self.spec.head_dim
        heads = self.qkv(x_BTD).view(B, T, H + 2 * K, E)
        qk = heads[:, :, : self.turned]
        if self.qk_norm is not None:
            qk = rms_norm(qk, self.qk_norm, self.spec.norm.eps)
        heads[:, :, : self.turned] = rotate(qk, *cos_sin)
        q_BHTE, kv_BTJE = heads[:, :, :H].transpose(1, 2), heads[:, :, H:]
        if cache is None:
            kv = kv_BTJE.transpose(1, 2)[:, :, view.first :]
        else:
            kv = cache.extend(index, kv_BTJE, view.first)
        keys, values = kv[:, :K], kv[:, K:]
        scale = self.spec.attention_scale
        out = attention(q_BHTE, keys, values, view.allowed, scale, causal=view.causal)
        return self.o(out.transpose(1, 2).reshape(B, T, H * E))  # type: ignore[no-any-return]
