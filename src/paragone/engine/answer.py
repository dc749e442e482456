"""An answer on its way: tokens come in, text that is certain goes out, until something ends it."""

import time
from dataclasses import dataclass, field

from torch import Tensor

from paragone.engine.params import SamplingParams
from paragone.engine.request import Allowed, Chunk, Completion, FinishReason, Request, TokenLogprobs
from paragone.engine.sampler import Sampler
from paragone.engine.scheduler import Scheduled
from paragone.engine.sequence import Sequence
from paragone.errors import ContextLengthExceeded, UsageError, message_of
from paragone.model.spec import ModelSpec
from paragone.text.stream import TextStream
from paragone.text.tokenizer import Tokenizer


def check_request(request: Request, spec: ModelSpec) -> int:
    """The most tokens that the answer may have. Raises before any work where the prompt does not fit."""
    context = spec.max_position_embeddings
    prompt, asked = len(request.prompt_ids), request.params.max_tokens
    if not prompt:
        raise UsageError("the prompt is empty: there is nothing to continue")
    if max(request.prompt_ids) >= spec.vocab_size or min(request.prompt_ids) < 0:
        raise UsageError(f"the prompt has token ids outside the vocabulary of {spec.vocab_size}")
    if prompt >= context:
        raise ContextLengthExceeded(
            f"the prompt has {prompt} tokens and the model's context is {context}: "
            f"shorten it by {prompt - context + 1} tokens or more"
        )
    outside = [token for token in request.params.token_ids() if token >= spec.vocab_size]
    if outside:
        raise UsageError(f"token id {outside[0]} is outside the vocabulary of {spec.vocab_size}")
    room = context - prompt
    return room if asked is None else min(asked, room)


@dataclass(eq=False, slots=True)
class Answer:
    """What the engine keeps for a sequence beside what the scheduler needs. `number` is the request's;
    `choice` says which of its answers this is."""

    number: int
    choice: int
    request: Request
    sequence: Sequence
    tokenizer: Tokenizer
    tenant: str
    sampler: Sampler
    stream: TextStream
    stop_ids: frozenset[int]
    completion: Completion
    allowed: Allowed | None = None
    begun: float = field(default_factory=time.perf_counter)
    _stops: tuple[str, ...] = field(init=False)
    _scores_prompt: bool = field(init=False)

    def __post_init__(self) -> None:
        self._stops = *self.params.stop, *self.request.stop
        self._scores_prompt = self.params.prompt_logprobs is not None and not self.choice

    @property
    def params(self) -> SamplingParams:
        return self.completion.params

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether log-probabilities of its prompt's tokens are still missing."""
        if not self._scores_prompt:
            return False
        return len(self.completion.prompt_logprobs) < len(self.sequence.prompt_ids) - 1

    @property
    def needs_logits(self) -> bool:
        """Whether the most likely tokens alone do not say how it goes on."""
        return self.allowed is not None or self.sampler.needs_logits

    def choose(
        self, part: Scheduled, logits: Tensor | None, best: list[int], row: int
    ) -> tuple[list[int], list[TokenLogprobs]]:
        """The next tokens from their logits, which are there if anybody needs them, rows from `row` on: one,
        and one more for each guess that turns out right."""
        if part.num_logits == 1 and self.allowed is None:  # as nearly always
            token, logprobs = self.sampler.choose(None if logits is None else logits[row], best[row])
            return [token], [] if logprobs is None else [logprobs]
        tokens: list[int] = []
        entries: list[TokenLogprobs] = []
        for at in range(part.num_logits):
            try:
                mask = None if self.allowed is None else self.allowed([*self.sequence.answer_ids, *tokens])
                own = None if logits is None else logits[row + at]
                token, logprobs = self.sampler.choose(own, best[row + at], mask)
            except Exception:
                if not tokens:
                    raise
                break  # what is behind the answer's end must not fail it; if it goes on, the next step raises
            tokens.append(token)
            entries += [logprobs] if logprobs else []
            if token in self.stop_ids or (at < len(part.draft) and part.draft[at] != token):
                break
        return tokens, entries

    def take(self, tokens: list[int], entries: list[TokenLogprobs]) -> Chunk:
        """Adds tokens, up to its end, and says what became certain."""
        completion = self.completion
        now = time.perf_counter() - self.begun
        if not completion.token_ids:
            completion.ttft_s = now
            completion.cached_tokens = self.sequence.cached
        completion.total_s = now
        text, reason, taken = "", None, 0
        for token in tokens:
            taken += 1
            completion.token_ids.append(token)
            piece, reason = self._push(token)
            text += piece
            if reason is None and len(completion.token_ids) >= self.sequence.max_tokens:
                reason = "length"
            if reason is not None:
                text += self.stream.finish()
                # What was held back may itself complete a stop string.
                reason = "stop" if self.stream.stopped else reason
                completion.finish_reason = reason
                break
        completion.text += text
        if entries:
            completion.logprobs += entries[:taken]
        return self._chunk(text, tuple(tokens[:taken]), tuple(entries[:taken]), reason)

    def _push(self, token: int) -> tuple[str, FinishReason | None]:
        """A token's text, and whether it or a stop string ends the answer."""
        # Before its least length nothing ends an answer, and nothing is held back for a stop string.
        early = len(self.completion.token_ids) < self.params.min_tokens
        self.stream.stops = () if early else self._stops
        if token in self.stop_ids and not early:
            return "", "stop"
        text = self.stream.push(self.tokenizer.text_bytes(token, special=self.request.show_special))
        return text, "stop" if self.stream.stopped else None

    def cancel(self) -> Chunk:
        """Ends it where it is."""
        text = self.stream.finish()
        self.completion.text += text
        return self._chunk(text, (), (), "cancelled")

    def fail(self, err: Exception) -> Chunk:
        """Ends it because something happened to it."""
        self.completion.finish_reason = "error"
        self.completion.error = message_of(err)
        return self._chunk("", (), (), "error")

    def _chunk(
        self,
        text: str,
        tokens: tuple[int, ...],
        entries: tuple[TokenLogprobs, ...],
        reason: FinishReason | None,
    ) -> Chunk:
        ended = None if reason is None else self.completion
        return Chunk(self.number, text, tokens, entries, reason, ended, self.choice)
