"""A loaded model, as Python users hold it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paragone.checkpoint.checkpoint import Checkpoint
from paragone.engine.config import EngineConfig
from paragone.engine.engine import Engine
from paragone.engine.generation import Front, Generation
from paragone.engine.params import SamplingParams
from paragone.engine.request import Chunk, Request
from paragone.errors import ContextLengthExceeded, UsageError
from paragone.model.decoder import Decoder
from paragone.model.forward import Reader
from paragone.model.precision import Precision
from paragone.text.chat import Message, encode_chat
from paragone.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]
LOGITS_ROWS = 128  # positions whose logits are held at once when a text is scored


@dataclass
class Model:
    """A decoder with its tokenizer. Make one with `paragone.load`. All that it generates at the same time
    runs together, on one engine that is made by `engine_config` when it is needed first. `draft` is a smaller
    model of the same vocabulary: it guesses what this one will say, which changes the speed and nothing
    else."""

    name: str
    path: Path
    precision: Precision
    checkpoint: Checkpoint
    decoder: Decoder
    tokenizer: Tokenizer
    engine_config: EngineConfig = field(default_factory=EngineConfig)
    draft: "Model | None" = None

    def __post_init__(self) -> None:
        self._front = Front(self._new_engine)

    def _new_engine(self) -> Engine:
        draft = self.draft
        if draft is not None and (token := self.tokenizer.differs_from(draft.tokenizer)) is not None:
            raise UsageError(
                f"{draft.name} cannot guess for {self.name}: "
                f"token {token} is not the same in their vocabularies"
            )
        decoder = None if draft is None else draft.decoder
        return Engine(self.decoder, self.tokenizer, self.engine_config, decoder)

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.decoder.spec.max_position_embeddings

    @property
    def engine(self) -> Engine:
        """What runs its requests."""
        return self._front.engine

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None, **settings: Any
    ) -> Any:
        """Continues one prompt (text or token ids; gives a Completion) or several (a list of them). With
        `n` above 1 a list of n Completions stands in the place of each. Of several prompts one that
        fails has the finish reason "error"; one alone raises ParagoneError.

        Settings are the fields of SamplingParams, by name. Raises UsageError for settings out of
        bounds and ContextLengthExceeded for a prompt that does not fit.
        """
        params = _params(params, settings)
        alone = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        batch = [prompts] if alone else list(prompts)
        run = self.start(batch, params)  # type: ignore[arg-type]
        for _ in run:
            pass
        if alone:
            run.check()
        n, answers = params.n, run.completions
        grouped = answers if n == 1 else [answers[at : at + n] for at in range(0, len(answers), n)]
        return grouped[0] if alone else grouped

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
        return Generation(self._front, [Request(self.encode(p), params) for p in prompts])

    def start_chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None, **settings: Any
    ) -> Generation:
        """A Generation that answers a conversation. What an earlier one has computed of the same beginning is
        found again."""
        return Generation(self._front, [self.chat_request(messages, _params(params, settings))])

    def chat_request(self, messages: Sequence[Message], params: SamplingParams) -> Request:
        """A conversation as the model's own chat template writes it."""
        ids = encode_chat(self.tokenizer, messages)
        return Request(ids, params, chat=True, stop=self.tokenizer.chat_stop)

    def chat(
        self, messages: str | Sequence[Message], params: SamplingParams | None = None, **settings: Any
    ) -> Any:
        """Answers a conversation, or one user message, by the model's own chat template. With `n` above 1
        gives a list of Completions."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        run = self.start_chat(messages, params, **settings)
        for _ in run:
            pass
        run.check()
        return run.completions[0] if len(run.completions) == 1 else run.completions

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
        text = Reader(self.decoder, len(ids))
        for at in range(0, len(ids) - 1, LOGITS_ROWS):
            hidden = text.read(ids[at : min(at + LOGITS_ROWS, len(ids) - 1)], len(ids) - 1)
            yield at, text.logits(hidden)[0].float().cpu()


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
