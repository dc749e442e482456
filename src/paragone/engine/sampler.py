"""Chooses the next token of each sequence from its logits.

Every request has its own random stream, one number a token, so that what it draws does not depend on the
requests beside it.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from paragone.engine.params import SamplingParams
from paragone.engine.request import NOTHING_ALLOWED, TokenLogprobs
from paragone.errors import MalformedData
from paragone.kernels import native
from paragone.ops.choose import kernels_wanted

NUCLEUS_GUESSES = 64, 1024, 8192  # how many of the most likely tokens are looked at before all of them are


class Sampler:
    """One request's choice of tokens: its parameters, its counts, its random stream."""

    def __init__(
        self, params: SamplingParams, prompt_ids: list[int], vocab_size: int, ends: Iterable[int] = ()
    ) -> None:
        """`ends` are the tokens that would end the answer, for `min_tokens`."""
        self.params = params = params.seeded()
        self.num_chosen = 0
        self._rng = torch.Generator()
        if params.seed is not None:
            self._rng.manual_seed(params.seed)
        self._counts: Tensor | None = None
        self._seen: Tensor | None = None
        self._added: Tensor | None = None
        self._unmade: tuple[list[int], int] | None = prompt_ids, vocab_size
        self._ends = torch.tensor(sorted(ends) if params.min_tokens else [], dtype=torch.int64)
        self._num_ends = len(self._ends)
        self._greedy = params.temperature == 0 and not _changes(params)
        self._best_is_all = self._greedy and not self._num_ends and params.logprobs is None

    @property
    def takes_best(self) -> bool:
        """Whether it takes the most likely token now, whatever it is."""
        return self._greedy and not self._too_early

    @property
    def needs_logits(self) -> bool:
        """Whether the next tokens, or what is told of them, take more than knowing the most likely one."""
        return not self._best_is_all and (not self.takes_best or self.params.logprobs is not None)

    @property
    def _too_early(self) -> bool:
        return self._num_ends > 0 and self.num_chosen < self.params.min_tokens

    def choose(
        self, logits_V: Tensor | None, best: int | None = None, allowed_V: Tensor | None = None
    ) -> tuple[int, TokenLogprobs | None]:
        """The next token, and its log-probabilities if they were asked for. `best` is the most likely token,
        where it is known already, -1 where its logit is no finite number; `allowed_V` are booleans. Logits
        must be there where it `needs_logits`, and where there are `allowed_V` or no `best`. Raises
        MalformedData where nothing is allowed, or the logits are no numbers."""
        params = self.params
        if self.takes_best and allowed_V is None and best is not None:
            token = best
        else:
            assert logits_V is not None  # noqa: S101 -- callers know
            self._make()
            token = self._sample(self._changed(logits_V.float().cpu(), allowed_V))
            token = token if token >= 0 and math.isfinite(float(logits_V[token])) else -1
        if token < 0:
            raise MalformedData("the model's logits are not finite numbers")
        self.num_chosen += 1
        if self._seen is not None:
            self._seen[token] = True
        if self._counts is not None:
            self._counts[token] += 1
        if params.logprobs is None:
            return token, None
        assert logits_V is not None  # noqa: S101 -- callers know
        return token, token_logprobs(logits_V, token, params.logprobs)

    def _make(self) -> None:
        """What is as large as the vocabulary: not while an answer waits for its turn."""
        if self._unmade is None:
            return
        params, (prompt_ids, vocab_size), self._unmade = self.params, self._unmade, None
        if params.repetition_penalty != 1.0:
            self._seen = torch.zeros(vocab_size, dtype=torch.bool)
            self._seen[torch.tensor(prompt_ids)] = True
        if params.presence_penalty or params.frequency_penalty:
            self._counts = torch.zeros(vocab_size)
        self._added = _added(params, vocab_size)

    def _changed(self, logits: Tensor, allowed_V: Tensor | None) -> Tensor:
        """The logits (V,) with all that the settings do to them before the temperature."""
        params = self.params
        logits = logits.clone()
        if allowed_V is not None:
            logits[: len(allowed_V)].masked_fill_(~allowed_V, -torch.inf)
            logits[len(allowed_V) :] = -torch.inf
        if self._added is not None:
            logits += self._added
        if self._too_early:
            logits[self._ends] = -torch.inf
        if float(logits.max()) == -math.inf:
            raise MalformedData(NOTHING_ALLOWED)
        if self._seen is not None:
            seen = logits[self._seen]
            penalty = params.repetition_penalty
            logits[self._seen] = torch.where(seen > 0, seen / penalty, seen * penalty)
        if self._counts is not None:
            shown = (self._counts > 0).float() * params.presence_penalty
            logits = logits - self._counts * params.frequency_penalty - shown
        return logits

    def _sample(self, logits: Tensor) -> int:
        params = self.params
        if params.temperature == 0:
            return int(logits.argmax())
        if native is not None and kernels_wanted():
            limits = params.top_k, params.top_p, params.min_p
            point = float(torch.rand((), generator=self._rng, dtype=torch.float64))
            return int(native.draw(logits.data_ptr(), len(logits), params.temperature, *limits, point))
        probs = (logits.double() / params.temperature).softmax(-1)
        if params.min_p > 0:
            probs = torch.where(probs >= params.min_p * probs.max(), probs, 0.0)
            # Running sums, here and below: they come out the same for any number of threads.
            probs /= probs.cumsum(0)[-1]
        if not params.top_k and params.top_p >= 1:
            return self._draw(probs)
        kept = self._most_likely(probs)
        return int(kept.indices[self._draw(kept.values)])

    def _most_likely(self, probs: Tensor) -> torch.return_types.topk:
        """The tokens that top-k and top-p leave, most likely first. Always at least one."""
        params = self.params
        count = min(params.top_k or len(probs), len(probs))
        if params.top_p >= 1:
            return probs.topk(count)
        share = 1.0 if not params.top_k else float(probs.topk(count).values.cumsum(0)[-1])
        for guess in (*(guess for guess in NUCLEUS_GUESSES if guess < count), count):
            best = probs.topk(guess)
            if float(best.values.cumsum(0)[-1]) >= params.top_p * share:
                break
        before = best.values.cumsum(0) - best.values  # what more likely tokens already cover
        keep = int((before < params.top_p * share).sum())
        return torch.return_types.topk((best.values[:keep], best.indices[:keep]))

    def _draw(self, weights: Tensor) -> int:
        """An index with probability proportional to its weight."""
        edges = weights.double().cumsum(0)
        point = torch.rand((), generator=self._rng, dtype=torch.float64) * edges[-1]
        at = int(torch.searchsorted(edges, point, right=True))
        return at if at < len(edges) else int((weights > 0).nonzero()[-1])  # where rounding made it the end


def _changes(params: SamplingParams) -> bool:
    """Whether settings other than the temperature change logits."""
    penalties = params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty
    return bool(penalties or params.logit_bias) or params.allowed_token_ids is not None


def _added(params: SamplingParams, vocab_size: int) -> Tensor | None:
    """What is added to every logit: the biases, and minus infinity where a token is not allowed."""
    if params.allowed_token_ids is None and not params.logit_bias:
        return None
    added = torch.zeros(vocab_size)
    if params.allowed_token_ids is not None:
        added.fill_(-torch.inf)
        added[list(params.allowed_token_ids)] = 0.0
    for token, bias in params.logit_bias:
        added[token] += bias
    return added


def token_logprobs(logits_V: Tensor, token: int, top: int) -> TokenLogprobs:
    """Log-probabilities of a token and of the `top` most likely ones."""
    logprobs = logits_V.float().log_softmax(-1)
    best = logprobs.topk(top) if top else None
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True) if best else ()
    return TokenLogprobs(token, float(logprobs[token]), tuple(pairs))
