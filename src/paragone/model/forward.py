"""Steps of a decoder over a cache in blocks: by a plan of the kernels, or by PyTorch where there is none."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from paragone.model.decoder import Decoder
from paragone.model.paged import PagedCache, PagedStep, Part, reaches_of
from paragone.model.plan import Plan, why_no_plan

BLOCK_SIZE = 16  # tokens


class Forward(Protocol):
    """What an engine needs of a model."""

    def hidden(self, ids: Sequence[int], parts: Sequence[Part], lengths: Sequence[int]) -> Tensor:
        """Hidden states (N, D) of a step's tokens, for `logits` to take, until the next call; those that are
        not wanted may be anything. Each part belongs to a text that has or will have so many tokens."""

    def logits(self, hidden_ND: Tensor, room: Tensor | None = None, /) -> tuple[Tensor, list[int]]:
        """Logits (N, V), and the most likely token of each row, -1 where its logit is no finite number. They
        may be written into `room`, which is (N or more, V) of float32."""

    def best(self, hidden_ND: Tensor, /) -> list[int]:
        """The most likely tokens, as `logits` has them."""


class TorchForward:
    """By PyTorch's operations."""

    def __init__(self, decoder: Decoder, cache: PagedCache) -> None:
        self.decoder, self.cache = decoder, cache

    @torch.inference_mode()
    def hidden(self, ids: Sequence[int], parts: Sequence[Part], lengths: Sequence[int]) -> Tensor:
        """As `Forward`."""
        memory = PagedStep(self.cache, parts)
        cos_sin = self._cos_sin(memory.positions, parts, lengths)
        ids_1N = torch.tensor([ids], device=self.decoder.device)
        return self.decoder.run(ids_1N, cos_sin, memory.positions, memory)[0]

    @torch.inference_mode()
    def logits(self, hidden_ND: Tensor, _room: Tensor | None = None, /) -> tuple[Tensor, list[int]]:
        """As `Forward`."""
        logits = self.decoder.logits(hidden_ND)
        most = logits.float().max(-1)
        return logits, torch.where(most.values.isfinite(), most.indices, -1).tolist()

    def best(self, hidden_ND: Tensor, /) -> list[int]:
        """As `Forward`."""
        return self.logits(hidden_ND)[1]

    def _cos_sin(
        self, positions_1N: Tensor, parts: Sequence[Part], lengths: Sequence[int]
    ) -> list[tuple[Tensor, Tensor]]:
        """Of each rope. Where its frequencies depend on how long a text is, text by text."""
        out = []
        for rope in self.decoder.ropes:
            if not rope.depends_on_length:
                out.append(rope.cos_sin(positions_1N, self.decoder.dtype))
                continue
            runs = positions_1N.split_with_sizes([part.count for part in parts], dim=1)
            turned = [
                rope.cos_sin(run, self.decoder.dtype, longest)
                for run, longest in zip(runs, lengths, strict=True)
            ]
            cos, sin = (torch.cat(each, dim=1) for each in zip(*turned, strict=True))
            out.append((cos, sin))
        return out


class Reader:
    """Reads one text, piece by piece, with a cache of its own for so many tokens."""

    def __init__(self, decoder: Decoder, capacity: int) -> None:
        blocks = -(-capacity // BLOCK_SIZE)
        pools = len(reaches_of(decoder.spec))
        cache = PagedCache(decoder.spec, [blocks] * pools, BLOCK_SIZE, decoder.dtype, decoder.device)
        self.forward = forward_over(decoder, cache)
        self._tables = [list(range(blocks))] * pools
        self.length = 0

    def read(self, ids: Sequence[int], longest: int) -> Tensor:
        """Hidden states (N, D) of the next tokens of a text that will have so many."""
        part = Part(self.length, len(ids), len(ids), self._tables)
        self.length += len(ids)
        return self.forward.hidden(ids, [part], [longest])

    def logits(self, hidden_ND: Tensor) -> tuple[Tensor, list[int]]:
        """As `Forward`."""
        return self.forward.logits(hidden_ND)


def forward_over(decoder: Decoder, cache: PagedCache, *, deterministic: bool = False) -> Forward:
    """The fastest that there is here."""
    if why_no_plan(decoder) is None:
        return Plan(decoder, cache, deterministic=deterministic)
    return TorchForward(decoder, cache)
