"""A block's norms."""

from torch import Tensor

from paragone.model.spec import NormSpec
from paragone.ops.norm import layer_norm, rms_norm


class Norm:
    """RMSNorm with a whole weight (1 + w for Gemma's files); float32 where the spec scales in float32."""

    def __init__(self, spec: NormSpec, weight: Tensor) -> None:
        self.eps, self.weight = spec.eps, weight

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

    def vectors(self) -> list[Tensor]:
        """Its weights."""
        return [self.weight]


class LayerNorm(Norm):
    """LayerNorm with a bias."""

    def __init__(self, spec: NormSpec, weight: Tensor, bias: Tensor) -> None:
        super().__init__(spec, weight)
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)

    def vectors(self) -> list[Tensor]:
        return [self.weight, self.bias]
