"""Scaled dot-product attention with grouped queries.

B batch, T query tokens, S key slots, H query heads, K key/value heads, E head width. Query head h reads
key/value head h // (H / K).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from paragone.ops.choose import use_fast


def attention_reference(
    q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, allowed: Tensor | None, scale: float
) -> Tensor:
    """Defines the answer. `allowed` is boolean, broadcastable to (B, H, T, S); None allows everything.

    Softmax in float32, cast back before it meets the values. Returns (B, H, T, E).
    """
    group = q_BHTE.shape[1] // k_BKSE.shape[1]
    k = k_BKSE.repeat_interleave(group, dim=1)
    v = v_BKSE.repeat_interleave(group, dim=1)
    scores = torch.matmul(q_BHTE, k.transpose(-1, -2)) * scale
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return torch.matmul(scores.softmax(-1, dtype=torch.float32).to(v.dtype), v)


def attention(
    q_BHTE: Tensor,
    k_BKSE: Tensor,
    v_BKSE: Tensor,
    allowed: Tensor | None,
    scale: float,
    *,
    causal: bool = False,
) -> Tensor:
    """As the reference. `causal` (with T = S and no `allowed`) stands for the lower triangle."""
    B, H, T, E = q_BHTE.shape
    K, S = k_BKSE.shape[1:3]
    if not use_fast():
        if causal:
            allowed = torch.ones(T, S, dtype=torch.bool, device=q_BHTE.device).tril()
        return attention_reference(q_BHTE, k_BKSE, v_BKSE, allowed, scale)
    if T == 1 and H != K:
        # The queries that share a head become rows of one product: each key is read once, not H / K times.
        rows = q_BHTE.reshape(B, K, H // K, E)
        out = F.scaled_dot_product_attention(rows, k_BKSE, v_BKSE, attn_mask=allowed, scale=scale)
        return out.reshape(B, H, 1, E)
    return F.scaled_dot_product_attention(
        q_BHTE, k_BKSE, v_BKSE, attn_mask=allowed, is_causal=causal, scale=scale, enable_gqa=H != K
    )
