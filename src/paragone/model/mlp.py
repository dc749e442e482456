"""The other half of a block: an MLP, or a mixture of them."""

import torch
from torch import Tensor

from paragone.model.linear import Linear
from paragone.model.spec import MoESpec
from paragone.ops.activation import activate, gated


class MLP:
    """down(act(gate x) * up x), gate and up from one product; ungated: down(act(up x))."""

    def __init__(self, activation: str, up: Linear, down: Linear, *, is_gated: bool = True) -> None:
        self.activation, self.up, self.down, self.is_gated = activation, up, down, is_gated

    def __call__(self, x: Tensor) -> Tensor:
        inner = self.up(x)
        return self.down((gated if self.is_gated else activate)(inner, self.activation))

    def linears(self) -> list[Linear]:
        """Its matrices."""
        return [self.up, self.down]

    def mlps(self) -> list["MLP"]:
        """Itself."""
        return [self]

    @property
    def decode_bytes(self) -> int:
        """Bytes of weights that one token reads."""
        return sum(linear.weight_bytes for linear in self.linears())


class MoE:
    """A mixture of experts. Tokens are gathered by expert, so each chosen expert's weights are read once a
    step and the others' not at all."""

    def __init__(
        self,
        spec: MoESpec,
        router: Linear,
        experts: list[MLP],
        shared: MLP | None,
        shared_gate: Linear | None,
    ) -> None:
        self.spec, self.router, self.experts = spec, router, experts
        self.shared, self.shared_gate = shared, shared_gate

    def __call__(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = self.route(flat)
        y = torch.zeros_like(flat)
        for expert in sorted(set(chosen.flatten().tolist())):  # in order, as the reference adds them
            rows, slots = (chosen == expert).nonzero(as_tuple=True)
            share = weights[rows, slots, None]
            if self.spec.score == "sigmoid":
                out = self.experts[expert](flat[rows] * share)
            else:
                out = (self.experts[expert](flat[rows]) * share).to(flat.dtype)
            y.index_add_(0, rows, out)
        if self.shared is not None:
            extra = self.shared(flat)
            y += extra if self.shared_gate is None else torch.sigmoid(self.shared_gate(flat)) * extra
        return y.view(x.shape)

    def route(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """(N, top_k) weights and numbers of the experts that each token goes to."""
        logits = self.router(x_ND)
        if self.spec.score == "sigmoid":
            best = logits.topk(self.spec.top_k, dim=-1)
            return torch.sigmoid(best.values.float()).to(x_ND.dtype), best.indices
        probabilities = logits.softmax(-1, dtype=torch.float32)
        weights, chosen = probabilities.topk(self.spec.top_k, dim=-1)
        if self.spec.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights if self.spec.float32_weights else weights.to(x_ND.dtype), chosen

    def linears(self) -> list[Linear]:
        """Its matrices."""
        experts = [linear for expert in self.experts for linear in expert.linears()]
        return [self.router, *experts, *self._always()]

    def mlps(self) -> list[MLP]:
        """All that it is a mixture of."""
        return self.experts if self.shared is None else [*self.experts, self.shared]

    def _always(self) -> list[Linear]:
        shared = [] if self.shared is None else self.shared.linears()
        return shared if self.shared_gate is None else [*shared, self.shared_gate]

    @property
    def decode_bytes(self) -> int:
        """Bytes of weights that one token reads: those of the experts that it goes to."""
        always = sum(linear.weight_bytes for linear in (self.router, *self._always()))
        return always + self.spec.top_k * self.experts[0].decode_bytes
