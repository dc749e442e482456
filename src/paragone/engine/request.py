"""What is asked of a model, and what comes back. No torch here."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from paragone.engine.params import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

FinishReason = Literal["stop", "length", "cancelled", "error"]
NOTHING_ALLOWED = "no token is allowed here"  # the error of an answer that its own settings make impossible
# What may come after an answer's tokens so far: (V,) booleans, or None for everything.
Allowed = Callable[[Sequence[int]], "Tensor | None"]


@dataclass(frozen=True)
class Request:
    """One prompt, as token ids, and how to answer it. `chat` drops the space that SentencePiece adds; `stop`
    are texts that end the answer beside those of the parameters. `allowed` makes, once for each of the
    answers, the function whose masks structured output needs. `show_special` spells control tokens out in the
    text."""

    prompt_ids: list[int]
    params: SamplingParams
    chat: bool = False
    stop: tuple[str, ...] = ()
    allowed: Callable[[], Allowed] | None = None
    show_special: bool = False


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural log-probabilities at one position, of the model's own distribution (before sampling)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, log-probability), most likely first


@dataclass
class Completion:
    """A finished answer. `finish_reason`: "stop" (the model ended it, or a stop string or token did),
    "length" (max_tokens, or the context is full), "cancelled", or "error" with what happened in `error`.
    `params` has the seed that was drawn. `prompt_logprobs` are those of the prompt's tokens after the first.
    Times are seconds from the start of the call."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_tokens: int
    params: SamplingParams
    ttft_s: float = math.nan
    total_s: float = math.nan
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    cached_tokens: int = 0  # of the prompt, found in the cache
    guessed_tokens: int = 0  # checked as guesses of what comes next, and those that were right
    accepted_tokens: int = 0
    error: str | None = None

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens after the first over the time after the first; nan for less than two tokens."""
        spent = self.total_s - self.ttft_s
        return (len(self.token_ids) - 1) / spent if len(self.token_ids) > 1 and spent > 0 else math.nan


@dataclass(slots=True)  # frozen ones take several times as long to make, and there is one a token
class Chunk:
    """A piece of an answer as it arrives: the text that is now certain, and the tokens behind it."""

    index: int  # which prompt of the batch, or the engine's number of the request
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    completion: Completion | None = None  # with an answer's last chunk
    choice: int = 0  # which of a request's n answers
