"""What is asked of a model, and what comes back. No torch here."""

import math
import secrets
from dataclasses import dataclass, field, replace
from typing import Literal

from paragone import limits
from paragone.errors import UsageError
from paragone.text.stream import check_stop_strings

LEAST_TEMPERATURE = 0.001
FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. Temperature 0 is greedy: the most likely token, always.

    Applied in this order: repetition penalty (prompt and answer, arXiv 1909.05858), presence and
    frequency penalties (answer only), temperature, min-p (arXiv 2407.01082), top-k, top-p
    (arXiv 1904.09751). `max_tokens` None means to the end of the context; `logprobs` is how many of the
    most likely tokens to report beside the chosen one, None for no log-probabilities at all.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError naming the first field that is out of bounds."""
        given: object = self.stop  # callers from outside pass one string too
        if not isinstance(given, str | list | tuple) or not all(isinstance(s, str) for s in given):
            raise UsageError(f"stop is {given!r}, not a text or a list of texts")
        stop = (given,) if isinstance(given, str) else tuple(given)
        object.__setattr__(self, "stop", check_stop_strings(stop))
        _whole("max_tokens", self.max_tokens, 1, limits.CONTEXT_LENGTH, optional=True)
        _whole("top_k", self.top_k, 0, limits.VOCAB_SIZE)
        _whole("logprobs", self.logprobs, 0, limits.LOGPROBS, optional=True)
        _whole("seed", self.seed, 0, (1 << 63) - 1, optional=True)
        _real("temperature", self.temperature, 0.0, 100.0)
        if 0 < self.temperature < LEAST_TEMPERATURE:
            raise UsageError(
                f"temperature is {self.temperature!r}; below {LEAST_TEMPERATURE} only 0 is meant"
            )
        _real("top_p", self.top_p, 0.0, 1.0, above=True)
        _real("min_p", self.min_p, 0.0, 1.0)
        _real("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _real("presence_penalty", self.presence_penalty, -100.0, 100.0)
        _real("frequency_penalty", self.frequency_penalty, -100.0, 100.0)

    def seeded(self) -> "SamplingParams":
        """With a seed of its own where one is needed and none was given: so an answer can be repeated."""
        if self.seed is not None or self.temperature == 0:
            return self
        return replace(self, seed=secrets.randbits(63))


def _whole(name: str, value: object, least: int, most: int, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UsageError(f"{name} is {value!r}, not a whole number from {least} to {most}")


def _real(name: str, value: object, least: float, most: float, *, above: bool = False) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not least <= value <= most or (above and value == least):  # type: ignore[operator]
        bounds = f"{'above' if above else 'from'} {least:g} to {most:g}"
        raise UsageError(f"{name} is {value!r}, not a number {bounds}")


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural log-probabilities at one position, of the model's own distribution (before sampling)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, log-probability), most likely first


@dataclass
class Completion:
    """A finished answer. `finish_reason`: "stop" (the model ended it, or a stop string did), "length"
    (max_tokens, or the context is full), "cancelled", or "error" with what happened in `error`. `params` has
    the seed that was drawn. Times are
    seconds from the start of the call."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_tokens: int
    params: SamplingParams
    ttft_s: float = math.nan
    total_s: float = math.nan
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    error: str | None = None

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens after the first over the time after the first; nan for less than two tokens."""
        spent = self.total_s - self.ttft_s
        return (len(self.token_ids) - 1) / spent if len(self.token_ids) > 1 and spent > 0 else math.nan


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer as it arrives: the text that is now certain, and the tokens behind it."""

    index: int  # which prompt of the batch, or the engine's number of the request
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    completion: Completion | None = None  # with an engine's last chunk of an answer
