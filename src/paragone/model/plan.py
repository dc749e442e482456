"""Steps of a decoder by a plan of the compiled kernels: a flat list of operations that one call runs.

N tokens of a step, D model width, H query heads, V tokens of the vocabulary. Between products the kernels
compute in float32; keys and values are kept as the cache keeps them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paragone.kernels import native
from paragone.model.decoder import Decoder
from paragone.model.linear import Rows
from paragone.model.lower import Lowering
from paragone.model.paged import PagedCache, Part
from paragone.model.position import Rope, alibi_bias, alibi_slopes, inverse_frequencies
from paragone.ops.choose import kernels_wanted
from paragone.ops.threads import threads

MOST_TOKENS = 1024  # of one run: buffers hold no more


def why_no_plan(decoder: Decoder) -> str | None:
    """Why a decoder cannot run on the kernels; None where it can."""
    if native is None:
        return "the kernels are not compiled"
    if not kernels_wanted():
        return "PARAGONE_OPS asks for PyTorch"
    if decoder.device.type != "cpu":
        return f"it is on {decoder.device}"
    if decoder.dtype != torch.bfloat16:
        return "it computes in float32"
    return None


class Plan:
    """A decoder over one cache."""

    def __init__(self, decoder: Decoder, cache: PagedCache, *, deterministic: bool = False) -> None:
        self.decoder, self.cache, self.deterministic = decoder, cache, deterministic
        lowered = Lowering(decoder, cache)
        self.native, self.head = lowered.layers, lowered.head
        self._kept: list[object] = [lowered]  # what the operations know by address only
        self._frequencies = [self._address(rope.inv, rope.scale) for rope in decoder.ropes]
        self._bias: Tensor | None = None
        self._x = Rows.empty(0, decoder.spec.hidden_size)

    def describe(self) -> list[str]:
        """The operations, in order."""
        return [*self.native.describe(), *self.head.describe()]

    def watch(self) -> None:
        """From now on the time of each operation is added up."""
        self.native.watch()
        self.head.watch()

    def seconds(self) -> list[float]:
        """Of each operation, since `watch`."""
        return [*self.native.seconds(), *self.head.seconds()]

    def hidden(self, ids: Sequence[int], parts: Sequence[Part], lengths: Sequence[int]) -> Tensor:
        """What all layers make of a step's tokens, before the last norm, (N, D) in float32; rows that are not
        wanted are not finished. They hold until the next call. `lengths` are those of the whole texts, which
        some ropes depend on."""
        x = self._x
        if len(ids) != x.count:
            x = self._x = Rows.empty(len(ids), self.decoder.spec.hidden_size)
        self.decoder.put_embedded(ids, x)
        if len(ids) <= MOST_TOKENS:
            self._run(x.address, len(ids), parts, lengths)
            return x.tensor
        at = x.address
        for run, run_lengths in _runs(parts, lengths):
            count = sum(part.count for part in run)
            self._run(at, count, run, run_lengths)
            at += 4 * count * self.decoder.spec.hidden_size
        return x.tensor

    def _run(self, x_at: int, count: int, parts: Sequence[Part], lengths: Sequence[int]) -> None:
        kept: list[Any] = []
        ropes = [self._rope(n, rope, parts, lengths, kept) for n, rope in enumerate(self.decoder.ropes)]
        bias = self._alibi(max(part.start + part.count for part in parts))
        where = (0, 0) if bias is None else (bias.data_ptr(), bias.stride(0))
        self.native.run(
            threads(), count, x_at, ropes,
            [(part.start, part.count, part.wanted, part.tables) for part in parts], self.cache.block_size,
            self.deterministic, *where,
        )  # fmt: skip

    def _rope(
        self, number: int, rope: Rope, parts: Sequence[Part], lengths: Sequence[int], kept: list[Any]
    ) -> tuple[int, int, int]:
        if not rope.depends_on_length:
            return self._frequencies[number]
        inverse, scale = _as_arrays([inverse_frequencies(rope.spec, rope.dim, n) for n in lengths])
        which = np.repeat(np.arange(len(parts), dtype=np.int32), [part.count for part in parts])
        kept += [inverse, scale, which]
        return inverse.data_ptr(), scale.data_ptr(), which.ctypes.data

    def _address(self, inverse: Tensor, scale: float) -> tuple[int, int, int]:
        """Where frequencies lie that are every token's."""
        arrays = _as_arrays([(inverse, scale)])
        self._kept += arrays
        return arrays[0].data_ptr(), arrays[1].data_ptr(), 0

    def _alibi(self, slots: int) -> Tensor | None:
        """ALiBi's (H, S), for so many slots or more."""
        spec = self.decoder.spec
        if spec.alibi is not None and (self._bias is None or self._bias.shape[1] < slots):
            places = torch.arange(2 * slots)[None]
            slopes = alibi_slopes(spec.num_attention_heads)
            bias = alibi_bias(spec.alibi, slopes, places, spec.attention_scale, torch.float32)
            self._bias = bias[0].contiguous()
        return self._bias

    def logits(self, hidden_ND: Tensor, room: Tensor | None = None, /) -> tuple[Tensor, list[int]]:
        """Logits (N, V) in float32 of rows that `hidden` gave, and the most likely token of each; -1 where
        they are no numbers."""
        rows = len(hidden_ND)
        out = torch.empty(rows, self.decoder.spec.vocab_size) if room is None else room[:rows]
        return out, self._run_head(hidden_ND, out)

    def best(self, hidden_ND: Tensor) -> list[int]:
        """The most likely tokens alone: nobody keeps the logits."""
        return self._run_head(hidden_ND, None)

    def _run_head(self, hidden_ND: Tensor, out: Tensor | None) -> list[int]:
        rows = self._x if hidden_ND is self._x.tensor else Rows(hidden_ND.contiguous())
        x, left, logits = rows.address, rows.count, 0 if out is None else out.data_ptr()
        spec = self.decoder.spec
        best: list[int] = []
        while left:
            here = min(MOST_TOKENS, left)
            best += self.head.run_head(threads(), here, x, self.deterministic, logits)
            # Counted in bytes: views of tensors, three of them a call, cost a single token's step 2%.
            x += 4 * here * spec.hidden_size
            logits += 4 * here * spec.vocab_size if logits else 0
            left -= here
        return best


def _as_arrays(regimes: Sequence[tuple[Tensor, float]]) -> tuple[Tensor, Tensor]:
    inverse = torch.stack([inv.float() for inv, _ in regimes]).contiguous()
    return inverse, torch.tensor([scale for _, scale in regimes], dtype=torch.float32)


def _runs(parts: Sequence[Part], lengths: Sequence[int]) -> list[tuple[list[Part], list[int]]]:
    """The parts in runs of so many tokens as are computed at once; long ones are cut."""
    runs: list[tuple[list[Part], list[int]]] = [([], [])]
    room = MOST_TOKENS
    for part, length in zip(parts, lengths, strict=True):
        at = 0
        while at < part.count:
            if room == 0:
                runs.append(([], []))
                room = MOST_TOKENS
            count = min(room, part.count - at)
            runs[-1][0].append(part.cut(at, count))
            runs[-1][1].append(length)
            at, room = at + count, room - count
    return runs
