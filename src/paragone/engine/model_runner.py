"""Computes what the scheduler has decided, and decides nothing."""

import torch
from torch import Tensor

from paragone.engine.request import TokenLogprobs
from paragone.engine.sampler import token_logprobs
from paragone.engine.scheduler import Batch, Scheduled
from paragone.model.decoder import Decoder
from paragone.model.paged import PagedCache, PagedStep, Part

LOGITS_ROWS = 128  # positions of a prompt whose logits are held at once


class ModelRunner:
    """A decoder with its cache in blocks."""

    def __init__(self, decoder: Decoder, num_blocks: list[int], block_size: int) -> None:
        self.decoder = decoder
        self.cache = PagedCache(decoder.spec, num_blocks, block_size, decoder.dtype, decoder.device)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Hidden states (N, D) of all tokens, and logits (rows, V): for each scheduled sequence in order, of
        its last `num_logits` tokens."""
        decoder, scheduled = self.decoder, batch.scheduled
        ids: list[int] = []
        wanted: list[int] = []
        for part in scheduled:
            text = part.sequence.token_ids
            end = part.start + part.count - len(part.draft)
            ids += text[part.start : end]
            ids += part.draft
            wanted += range(len(ids) - part.num_logits, len(ids))
        memory = PagedStep(self.cache, [Part(p.start, p.count, p.sequence.slots.tables) for p in scheduled])
        ids_1N = torch.tensor([ids], device=decoder.device)
        hidden = decoder.run(ids_1N, self._cos_sin(memory.positions, scheduled), memory.positions, memory)[0]
        return hidden, decoder.logits(hidden if len(wanted) == len(ids) else hidden[wanted])

    @torch.inference_mode()
    def logprobs(self, hidden_ND: Tensor, next_ids: list[int], top: int) -> list[TokenLogprobs]:
        """Of the token that follows each position."""
        entries = []
        for at in range(0, len(next_ids), LOGITS_ROWS):
            run = next_ids[at : at + LOGITS_ROWS]
            logits = self.decoder.logits(hidden_ND[at : at + len(run)]).float().cpu()
            entries += [token_logprobs(row, token, top) for row, token in zip(logits, run, strict=True)]
        return entries

    def _cos_sin(self, positions_1N: Tensor, scheduled: list[Scheduled]) -> list[tuple[Tensor, Tensor]]:
        """Of each rope. Where its frequencies depend on how long a text is, text by text."""
        out = []
        for rope in self.decoder.ropes:
            if not rope.depends_on_length:
                out.append(rope.cos_sin(positions_1N, self.decoder.dtype))
                continue
            runs = positions_1N.split_with_sizes([part.count for part in scheduled], dim=1)
            lengths = [max(len(p.sequence.token_ids), p.start + p.count) for p in scheduled]
            parts = [
                rope.cos_sin(run, self.decoder.dtype, longest)
                for run, longest in zip(runs, lengths, strict=True)
            ]
            cos, sin = (torch.cat(each, dim=1) for each in zip(*parts, strict=True))
            out.append((cos, sin))
        return out
