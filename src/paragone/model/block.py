"""The blocks: how norms, attention, MLP and the residual stream are wired."""

from torch import Tensor

from paragone.model.attention import Attention, Step
from paragone.model.linear import Linear
from paragone.model.mlp import MLP, MoE
from paragone.model.norm import Norm


class Block:
    """Pre-norm: x += A(norm x); x += F(norm x)."""

    def __init__(self, attn: Attention, mlp: MLP | MoE, norms: list[Norm]) -> None:
        self.attn, self.mlp, self.norms = attn, mlp, norms

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.attn(self.norms[0](x), step)
        return x + self.mlp(self.norms[1](x))

    def linears(self) -> list[Linear]:
        """The block's matrices."""
        return [self.attn.qkv, self.attn.o, *self.mlp.linears()]

    def vectors(self) -> list[Tensor]:
        """The block's other weights."""
        norms = [vector for norm in self.norms for vector in norm.vectors()]
        biases = [linear.bias for linear in self.linears()]
        return [v for v in (*norms, *biases, self.attn.qk_norm) if v is not None]

    @property
    def decode_bytes(self) -> int:
        """Bytes of matrices that one token reads."""
        return self.attn.qkv.weight_bytes + self.attn.o.weight_bytes + self.mlp.decode_bytes


class SandwichBlock(Block):
    """Norms on both sides: x += post(A(norm x)); x += post(F(norm x)). norms: the four in this order."""

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.norms[1](self.attn(self.norms[0](x), step))
        return x + self.norms[3](self.mlp(self.norms[2](x)))


class ParallelBlock(Block):
    """Attention and MLP side by side: x += A(norm x) + F(norm x), with one norm for both or one for each."""

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        normed = self.norms[0](x)
        attended = self.attn(normed, step)
        return attended + self.mlp(normed if len(self.norms) == 1 else self.norms[1](x)) + x


BLOCKS = {
    "pre": Block,
    "sandwich": SandwichBlock,
    "parallel": ParallelBlock,
    "parallel_two_norms": ParallelBlock,
}
