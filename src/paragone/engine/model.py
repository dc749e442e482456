"""A loaded model, as Python users hold it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paragone.checkpoint.checkpoint import Checkpoint
from paragone.engine.generate import Generation, Request
from paragone.engine.load import known_format
from paragone.engine.request import Chunk, Completion, SamplingParams
from paragone.errors import ContextLengthExceeded, UsageError
from paragone.model.decoder import Decoder
from paragone.model.precision import Precision
from paragone.text.chat import Message, encode_chat
from paragone.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]
LOGITS_ROWS = 128  # positions whose logits are held at once when a text is scored


@dataclass
class Model:
    """A decoder with its tokenizer. Make one with `paragone.load`."""

    name: str
    path: Path
    precision: Precision
    checkpoint: Checkpoint
    decoder: Decoder
    tokenizer: Tokenizer

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.decoder.spec.max_position_embeddings

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None, **settings: Any
    ) -> Any:
        """Continues one prompt (text or token ids; gives a Completion) or several (a list of them).

        Settings are the fields of SamplingParams, by name. Raises UsageError for settings out of
        bounds and ContextLengthExceeded for a prompt that does not fit.
        """
        alone = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        batch = [prompts] if alone else list(prompts)
        run = self.start(batch, params, **settings)  # type: ignore[arg-type]
        for _ in run:
            pass
        return run.completions[0] if alone else run.completions

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, **settings: Any
    ) -> Iterator[Chunk]:
        """Continues one prompt, piece by piece."""
        return iter(self.start([prompt], params, **settings))

    def start(
        self, prompts: Sequence[Prompt], params: SamplingParams | None = None, **settings: Any
    ) -> Generation:
        """A Generation to iterate over and, if need be, cancel."""
        params = _params(params, settings)
        requests = [Request(self.encode(p), params) for p in prompts]
        return Generation(self.decoder, self.tokenizer, requests)

    def start_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        previous: Generation | None = None,
        **settings: Any,
    ) -> Generation:
        """A Generation that answers a conversation; what `previous` has computed is not computed again."""
        params = _params(params, settings)
        known_format(self.tokenizer, self.name)
        ids = encode_chat(self.tokenizer, messages)
        request = Request(ids, params, chat=True, stop=self.tokenizer.chat_stop)
        return Generation(self.decoder, self.tokenizer, [request], previous)

    def chat(
        self, messages: str | Sequence[Message], params: SamplingParams | None = None, **settings: Any
    ) -> Completion:
        """Answers a conversation, or one user message, by the model's own chat template."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        run = self.start_chat(messages, params, **settings)
        for _ in run:
            pass
        return run.completions[0]

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt: a text gets the model's BOS, ids are taken as they are."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt, prefix=True)
        if not isinstance(prompt, list | tuple) or not all(type(i) is int for i in prompt):
            raise UsageError(f"a prompt is a text or a list of token ids, not {type(prompt).__name__}")
        return list(prompt)

    def logprobs(self, prompt: Prompt) -> list[float]:
        """Natural log-probability of every token of a text after the first, given those before it."""
        ids = self.encode(prompt)
        if len(ids) < 2:
            raise UsageError("log-probabilities need at least two tokens")
        if min(ids) < 0 or max(ids) >= self.decoder.spec.vocab_size:
            raise UsageError(f"token ids must be from 0 to {self.decoder.spec.vocab_size - 1}")
        if len(ids) > self.context:
            raise ContextLengthExceeded(f"{len(ids)} tokens do not fit the context of {self.context}")
        out: list[float] = []
        targets = torch.tensor(ids[1:])
        for at, logits in self.position_logits(ids):
            out += chosen_logprobs(logits, targets[at : at + len(logits)]).tolist()
        return out

    @torch.inference_mode()
    def position_logits(self, ids: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """(first position, logits (n, V) in float32 on the CPU) for every token but the last."""
        hidden = self.decoder.hidden(torch.tensor([list(ids[:-1])], device=self.decoder.device))[0]
        for at in range(0, len(hidden), LOGITS_ROWS):
            yield at, self.decoder.logits(hidden[at : at + LOGITS_ROWS]).float().cpu()


def chosen_logprobs(logits_NV: Tensor, ids_N: Tensor) -> Tensor:
    """Natural log-probability of one token of each row, without making all of them."""
    return logits_NV.gather(1, ids_N[:, None])[:, 0] - logits_NV.logsumexp(1)


def _params(params: SamplingParams | None, settings: dict[str, Any]) -> SamplingParams:
    if params is not None and settings:
        raise UsageError(f"give either params or settings, not both ({', '.join(settings)})")
    unknown = settings.keys() - SamplingParams.__dataclass_fields__.keys()
    if unknown:
        known = ", ".join(SamplingParams.__dataclass_fields__)
        raise UsageError(f"unknown setting {', '.join(sorted(unknown))}. Known: {known}.")
    return params or SamplingParams(**settings)
