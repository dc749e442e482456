"""Rotary frequencies and their scalings, and the cosines and sines of a step's positions."""

import math

import torch
from torch import Tensor

from paragone.model.spec import RopeSpec


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> tuple[Tensor, float]:
    """(head_dim / 2) float32 angles per position, and the factor on cosines and sines.

    Sources: linear, position interpolation (arXiv 2306.15595); llama3, transformers'
    `_compute_llama3_parameters`; yarn (arXiv 2309.00071).
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    inv = 1.0 / (rope.theta**exponents)
    if rope.scaling == "linear":
        return inv / rope.factor, 1.0
    if rope.scaling == "factors":
        return inv / torch.tensor(rope.factors), 1.0
    if rope.scaling == "llama3":
        return _llama3(rope, inv), 1.0
    if rope.scaling == "yarn":
        scale = rope.attention_factor or (0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0)
        return _yarn(rope, inv, head_dim), scale
    return inv, 1.0


def _llama3(rope: RopeSpec, inv: Tensor) -> Tensor:
    """Long wavelengths are slowed by `factor`, short ones kept, those between blended."""
    original = rope.original_max_position_embeddings
    wavelength = 2 * math.pi / inv
    share = original / wavelength - rope.low_freq_factor
    smooth = share / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - smooth) * inv / rope.factor + smooth * inv
    slow = torch.where(wavelength > original / rope.low_freq_factor, inv / rope.factor, blended)
    return torch.where(wavelength < original / rope.high_freq_factor, inv, slow)


def _yarn(rope: RopeSpec, inv: Tensor, dim: int) -> Tensor:
    """Dimensions that turn often keep their speed, those that turn rarely are interpolated."""

    def dimension(turns: float) -> float:
        span = rope.original_max_position_embeddings / (turns * 2 * math.pi)
        return dim * math.log(span) / (2 * math.log(rope.theta))

    low = max(math.floor(dimension(rope.beta_fast)), 0)
    high = min(math.ceil(dimension(rope.beta_slow)), dim - 1)
    span = (high - low) or 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
    return inv / rope.factor * ramp + inv * (1 - ramp)


class Rope:
    """One rope's frequencies; gives (cos, signed sin) for positions."""

    def __init__(self, spec: RopeSpec, head_dim: int) -> None:
        self.inv, self.scale = inverse_frequencies(spec, head_dim)

    def cos_sin(self, positions_BT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(B, T, 1, E) each, in `dtype`; sin's first half is negated, as `ops.rope.rotate` takes it."""
        self.inv = self.inv.to(positions_BT.device)
        angles = positions_BT[..., None].float() * self.inv
        cos, sin = angles.cos() * self.scale, angles.sin() * self.scale
        cos2, sin2 = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
        return cos2.to(dtype).unsqueeze(2), sin2.to(dtype).unsqueeze(2)
