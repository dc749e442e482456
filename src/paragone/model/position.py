"""Rotary frequencies and their scalings, the cosines and sines of a step's positions, and ALiBi's biases."""

import math

import torch
from torch import Tensor

from paragone.model.spec import RopeSpec


def inverse_frequencies(rope: RopeSpec, dim: int, longest: int = 0) -> tuple[Tensor, float]:
    """(dim / 2) float32 angles per position, and the factor on cosines and sines. `longest` is the number of
    positions that the step reaches, which two scalings depend on.

    Sources: linear, position interpolation (arXiv 2306.15595); llama3, transformers'
    `_compute_llama3_parameters`; yarn (arXiv 2309.00071); longrope (arXiv 2402.13753); dynamic,
    transformers' `_compute_dynamic_ntk_parameters`.
    """
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    inv = 1.0 / (rope.theta**exponents)
    original = rope.original_max_position_embeddings
    if rope.scaling == "linear":
        return inv / rope.factor, 1.0
    if rope.scaling == "factors":
        return inv / torch.tensor(rope.factors), 1.0
    if rope.scaling == "llama3":
        return _llama3(rope, inv), 1.0
    if rope.scaling == "yarn":
        scale = rope.attention_factor or (0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0)
        return _yarn(rope, inv, dim), scale
    if rope.scaling == "longrope":
        factors = torch.tensor(rope.long_factors if longest > original else rope.factors)
        grown = math.sqrt(1 + math.log(rope.factor) / math.log(original)) if rope.factor > 1 else 1.0
        scale = rope.attention_factor if rope.attention_factor is not None else grown
        return 1.0 / (factors * rope.theta**exponents), scale
    if rope.scaling == "dynamic":
        stretch = rope.factor * max(longest, rope.max_position_embeddings) / rope.max_position_embeddings
        theta = rope.theta * (stretch - (rope.factor - 1)) ** (dim / (dim - 2))
        return 1.0 / (theta**exponents), 1.0
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
    """One rope's frequencies; gives (cos, sin) for positions."""

    def __init__(self, spec: RopeSpec, head_dim: int) -> None:
        self.spec, self.dim = spec, spec.dim or head_dim
        self.depends_on_length = spec.scaling in ("longrope", "dynamic")
        self.inv, self.scale = inverse_frequencies(spec, self.dim)

    def regime(self, longest: int) -> int:
        """What the frequencies depend on for a text of so many positions: texts of one regime turn alike."""
        if self.spec.scaling == "longrope":
            return int(longest > self.spec.original_max_position_embeddings)
        if self.spec.scaling == "dynamic":
            return max(longest, self.spec.max_position_embeddings)
        return 0

    def cos_sin(
        self, positions_BT: Tensor, dtype: torch.dtype, longest: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, T, 1, dim) each, in `dtype`; sin's first half is negated, as `ops.rope.rotate_` takes it. With
        neighbouring pairs (B, T, 1, dim / 2) in float32, as `ops.rope.rotate_pairs_` takes them. `longest`:
        the positions that the whole text will have, where they are a part of it."""
        inv, scale = self.inv, self.scale  # others may ask at the same time: nothing is kept
        if self.depends_on_length:
            longest = longest or int(positions_BT.max()) + 1
            inv, scale = inverse_frequencies(self.spec, self.dim, longest)
        angles = positions_BT[..., None].float() * inv.to(positions_BT.device)
        cos, sin = angles.cos() * scale, angles.sin() * scale
        if self.spec.pairs:
            return cos.unsqueeze(2), sin.unsqueeze(2)
        cos2, sin2 = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
        return cos2.to(dtype).unsqueeze(2), sin2.to(dtype).unsqueeze(2)


def alibi_slopes(num_heads: int) -> Tensor:
    """(H) float32: a geometric series for a power of two; the heads beyond it take every other one of the
    next power's (arXiv 2108.12409, and BLOOM's build_alibi_tensor for the rest)."""
    power = 2 ** math.floor(math.log2(num_heads))

    def base(n: int) -> Tensor:
        return torch.tensor(2 ** (-(2 ** -(math.log2(n) - 3))), dtype=torch.float32)

    slopes = torch.pow(base(power), torch.arange(1, 1 + power, dtype=torch.int32))
    if power < num_heads:
        odd = torch.arange(1, 1 + 2 * (num_heads - power), 2, dtype=torch.int32)
        slopes = torch.cat((slopes, torch.pow(base(2 * power), odd)))
    return slopes


def alibi_bias(kind: str, slopes_H: Tensor, positions_BS: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """(B, H, S): what is added to the scaled scores of every key. Falcon's slopes and products are bfloat16,
    whatever the model's type, and are scaled as the scores are."""
    slopes, positions = slopes_H[None, :, None], positions_BS[:, None, :]
    if kind == "falcon":
        return (slopes.bfloat16() * positions).to(dtype) * scale
    return (slopes * positions).to(dtype)
