"""How tokens are chosen: a request's settings, each checked by name. No torch here."""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from paragone import limits
from paragone.errors import UsageError
from paragone.text.stream import check_stop_strings

LEAST_TEMPERATURE = 0.001


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. Temperature 0 is greedy: the most likely token, always.

    Applied in this order: allowed tokens, `logit_bias`, repetition penalty (prompt and answer, arXiv
    1909.05858), presence and frequency penalties (answer only), temperature, min-p (arXiv 2407.01082), top-k,
    top-p (arXiv 1904.09751).

    `n` answers are given to a prompt, each with a random stream of its own. `max_tokens` None means to the
    end of the context; before `min_tokens` nothing ends an answer. `stop` are texts and `stop_token_ids`
    tokens that end it, beside the model's own. `logit_bias` is added to tokens' logits, by id; None for
    `allowed_token_ids` means all. `logprobs` is how many of the most likely tokens to report beside the
    chosen one, None for no log-probabilities at all; `prompt_logprobs` the same for the prompt's tokens.
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
    n: int = 1
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()  # a mapping may be given
    allowed_token_ids: tuple[int, ...] | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        """Raises UsageError naming the first field that is out of bounds."""
        given: object = self.stop  # callers from outside pass one string too
        if not isinstance(given, str | list | tuple) or not all(isinstance(s, str) for s in given):
            raise UsageError(f"stop is {given!r}, not a text or a list of texts")
        stop = (given,) if isinstance(given, str) else tuple(given)
        object.__setattr__(self, "stop", check_stop_strings(stop))
        _whole("max_tokens", self.max_tokens, 1, limits.CONTEXT_LENGTH, optional=True)
        most = limits.CONTEXT_LENGTH if self.max_tokens is None else self.max_tokens
        _whole("min_tokens", self.min_tokens, 0, most)
        _whole("n", self.n, 1, limits.ANSWERS)
        _whole("top_k", self.top_k, 0, limits.VOCAB_SIZE)
        _whole("logprobs", self.logprobs, 0, limits.LOGPROBS, optional=True)
        _whole("prompt_logprobs", self.prompt_logprobs, 0, limits.LOGPROBS, optional=True)
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
        if not isinstance(self.ignore_eos, bool):
            raise UsageError(f"ignore_eos is {self.ignore_eos!r}, not true or false")
        object.__setattr__(self, "stop_token_ids", _ids("stop_token_ids", self.stop_token_ids))
        if self.allowed_token_ids is not None:
            allowed = _ids("allowed_token_ids", self.allowed_token_ids)
            if not allowed:
                raise UsageError("allowed_token_ids is empty: no token could be chosen")
            object.__setattr__(self, "allowed_token_ids", allowed)
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))

    def seeded(self) -> "SamplingParams":
        """With a seed of its own where one is needed and none was given: so an answer can be repeated."""
        if self.seed is not None or self.temperature == 0:
            return self
        return replace(self, seed=secrets.randbits(63))

    def of_choice(self, choice: int) -> "SamplingParams":
        """For one of the `n` answers: the first has the seed itself, the others the numbers after it."""
        if self.seed is None or not choice:
            return self
        return replace(self, seed=(self.seed + choice) % (1 << 63))

    def token_ids(self) -> Iterable[int]:
        """All tokens that are named, to be checked against a vocabulary."""
        yield from self.stop_token_ids
        yield from self.allowed_token_ids or ()
        yield from (token for token, _ in self.logit_bias)


def _whole(name: str, value: object, least: int, most: int, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UsageError(f"{name} is {value!r}, not a whole number from {least} to {most}")


def _real(name: str, value: object, least: float, most: float, *, above: bool = False) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    # What is not a number at all lies between no bounds, and a whole number may be too large for a float.
    if not good or not least <= value <= most or (above and value == least):  # type: ignore[operator]
        bounds = f"{'above' if above else 'from'} {least:g} to {most:g}"
        raise UsageError(f"{name} is {value!r}, not a number {bounds}")


def _ids(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list | tuple | set | frozenset):
        raise UsageError(f"{name} is {value!r}, not a list of token ids")
    for token in value:
        _whole(f"a token id in {name}", token, 0, limits.VOCAB_SIZE)
    return tuple(sorted(set(value)))


def _biases(value: object) -> tuple[tuple[int, float], ...]:
    pairs = value.items() if isinstance(value, Mapping) else value
    wrong = UsageError(f"logit_bias is {value!r}, not a mapping of token ids to numbers")
    try:
        checked = {token: bias for token, bias in pairs}  # type: ignore[attr-defined]  # noqa: C416
    except (TypeError, ValueError):
        raise wrong from None
    for token, bias in checked.items():
        _whole("a token id in logit_bias", token, 0, limits.VOCAB_SIZE)
        _real("a number in logit_bias", bias, -100.0, 100.0)
    return tuple(sorted(checked.items()))
