"""Computes what the scheduler has decided, and decides nothing."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from paragone.engine.config import EngineConfig
from paragone.engine.request import TokenLogprobs
from paragone.engine.sampler import token_logprobs
from paragone.engine.scheduler import Batch, Scheduled
from paragone.errors import BadConfiguration
from paragone.model.decoder import Decoder
from paragone.model.paged import PagedCache, PagedStep, Part
from paragone.ops.choose import Implementation, describe_kernels, has_kernels, implementation

LOGITS_ROWS = 128  # positions of a prompt whose logits are held at once


class ModelRunner:
    """A decoder with its cache in blocks."""

    def __init__(self, decoder: Decoder, config: EngineConfig, num_blocks: list[int]) -> None:
        """Raises BadConfiguration where the deterministic mode is asked for and cannot be kept."""
        self.decoder = decoder
        self.forms: Implementation | None = None  # of operations; None leaves it to them
        if config.deterministic:
            _check_deterministic(decoder)
            self.forms = "deterministic"
        eight_bit = config.kv_cache_bits == 8
        self.cache = PagedCache(
            decoder.spec, num_blocks, config.block_size, decoder.dtype, decoder.device, eight_bit=eight_bit
        )

    def _chosen_forms(self) -> AbstractContextManager[None]:
        return nullcontext() if self.forms is None else implementation(self.forms)

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
        parts = [Part(p.start, p.count, p.sequence.slots.tables) for p in scheduled]
        ids_1N = torch.tensor([ids], device=decoder.device)
        with self._chosen_forms():
            memory = PagedStep(self.cache, parts)
            cos_sin = self._cos_sin(memory.positions, scheduled)
            hidden = decoder.run(ids_1N, cos_sin, memory.positions, memory)[0]
            return hidden, decoder.logits(hidden if len(wanted) == len(ids) else hidden[wanted])

    @torch.inference_mode()
    def logprobs(self, hidden_ND: Tensor, next_ids: list[int], top: int) -> list[TokenLogprobs]:
        """Of the token that follows each position."""
        entries = []
        for at in range(0, len(next_ids), LOGITS_ROWS):
            run = next_ids[at : at + LOGITS_ROWS]
            with self._chosen_forms():
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


def _check_deterministic(decoder: Decoder) -> None:
    """What PyTorch multiplies depends on how many rows there are; only the kernels' products do not."""
    if not has_kernels():
        raise BadConfiguration(
            f"the deterministic mode needs the compiled kernels; here: {describe_kernels()}"
        )
    linears = [linear for block in decoder.blocks for linear in block.linears()] + [decoder.head]
    if any(linear.kernel is None for linear in linears):
        raise BadConfiguration(
            "the deterministic mode needs bf16, int8 or int4 on the CPU: "
            f"this model computes in {str(decoder.dtype).removeprefix('torch.')} on {decoder.device}"
        )
