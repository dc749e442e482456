"""Computes what the scheduler has decided, and decides nothing."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from paragone.engine.config import EngineConfig
from paragone.engine.request import TokenLogprobs
from paragone.engine.sampler import token_logprobs
from paragone.engine.scheduler import Batch
from paragone.errors import BadConfiguration
from paragone.model.decoder import Decoder
from paragone.model.forward import forward_over
from paragone.model.paged import PagedCache, Part
from paragone.model.plan import why_no_plan
from paragone.ops import pages
from paragone.ops.threads import TorchOnOneThread

LOGITS_ROWS = 128  # positions of a prompt whose logits are held at once


class ModelRunner:
    """A decoder with its cache in blocks."""

    def __init__(self, decoder: Decoder, config: EngineConfig, num_blocks: list[int]) -> None:
        """Raises BadConfiguration where the deterministic mode is asked for and cannot be kept."""
        self.decoder = decoder
        reason = why_no_plan(decoder)
        if config.deterministic and reason:
            # What PyTorch multiplies depends on how many rows there are.
            raise BadConfiguration(
                f"the deterministic mode needs the compiled kernels in bf16, int8 or int4: {reason}"
            )
        eight_bit = config.kv_cache_bits == 8
        self.cache = PagedCache(
            decoder.spec, num_blocks, config.block_size, decoder.dtype, decoder.device, eight_bit=eight_bit
        )
        # Logits of a step, until the next: pages that are new each time cost more than the product itself.
        self._room = torch.empty(0, decoder.spec.vocab_size)
        self.run = forward_over(decoder, self.cache, deterministic=config.deterministic)
        self._planned = reason is None

    def threads(self) -> AbstractContextManager[None]:
        """Around a step: PyTorch's threads are not to be in the way of the kernels'."""
        return TorchOnOneThread() if self._planned else nullcontext()

    def forward(self, batch: Batch, *, with_logits: bool) -> tuple[Tensor, Tensor | None, list[int]]:
        """Hidden states (N, D) of all tokens, finished where they are asked for; logits (rows, V) if anybody
        looks at them: for each scheduled sequence in order, of its last `num_logits` tokens; and the most
        likely token of each of these rows. The logits hold until the next call."""
        ids: list[int] = []
        wanted: list[int] = []
        parts: list[Part] = []
        lengths: list[int] = []
        for part in batch.scheduled:
            start, count, draft, sequence = part.start, part.count, part.draft, part.sequence
            text, end = sequence.token_ids, start + count
            ids += text[start : end - len(draft)]
            ids += draft
            wanted += range(len(ids) - part.num_logits, len(ids))
            # For its log-probabilities the hidden states of all of a prompt count.
            asked = part.num_logits if sequence.params.prompt_logprobs is None else count
            parts.append(Part(start, count, asked, sequence.slots.tables))
            lengths.append(max(len(text), end))
        hidden = self.run.hidden(ids, parts, lengths)
        rows = hidden if len(wanted) == len(ids) else hidden[wanted]
        if not with_logits:
            return hidden, None, self.run.best(rows)
        if len(self._room) < len(wanted):
            self._room = pages.empty((2 * len(wanted), self.decoder.spec.vocab_size), torch.float32)
        return hidden, *self.run.logits(rows, self._room)

    @torch.inference_mode()
    def logprobs(self, hidden_ND: Tensor, next_ids: list[int], top: int) -> list[TokenLogprobs]:
        """Of the token that follows each position."""
        entries = []
        for at in range(0, len(next_ids), LOGITS_ROWS):
            run = next_ids[at : at + LOGITS_ROWS]
            logits = self.run.logits(hidden_ND[at : at + len(run)])[0].float().cpu()
            entries += [token_logprobs(row, token, top) for row, token in zip(logits, run, strict=True)]
        return entries
