"""Guesses what comes next, so that several tokens are checked in the time of one (arXiv 2211.17192).

A guess is only checked, never believed: at each place the token is chosen from the model's own logits as
ever, and the guess counts where it is the same. So answers do not change, greedy or drawn; their speed does.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field
from typing import Protocol

import torch

from paragone.engine.scheduler import Scheduled
from paragone.engine.sequence import Sequence
from paragone.model.decoder import Decoder
from paragone.model.forward import BLOCK_SIZE, forward_over
from paragone.model.paged import PagedCache, Part, reaches_of

MOST = 7  # guesses at a time: with the token before them as many as attend one by one
LONGEST = 4  # tokens that are looked up, and then one less, down to SHORTEST
SHORTEST = 2
PREFILL = 512  # tokens that a draft model reads at a time
PRIOR = 0.6, 2.0  # the share of right guesses that is assumed at first, and how many guesses that is worth
MEMORY = 0.95  # what an earlier guess counts when the next has been checked
RETRY = 64  # guessing that does not pay is tried again after so many chances
SMOOTHING = 0.3


class Proposer(Protocol):
    """Where guesses come from."""

    def kind(self, number: int, token_ids: Ids[int]) -> int | None:
        """What kind of guess there would be for a text, None for none. Guesses of one kind are about equally
        often right."""

    def propose(self, number: int, token_ids: Ids[int], most: int) -> list[int]:
        """Up to `most` tokens that may come next. Asked after `kind`."""

    def behind(self, number: int, token_ids: Ids[int]) -> int:
        """How many tokens it must read before it can propose anything."""

    def forget(self, number: int) -> None:
        """The text has ended, or does not run any more."""


class PromptLookup:
    """What came after the same few tokens the last time, in prompt or answer; its kinds say how few."""

    def __init__(self) -> None:
        # Of each text: how much is known, where every few tokens were seen last, where its end was.
        self._done: dict[int, int] = {}
        self._places: dict[int, dict[tuple[int, ...], int]] = {}
        self._found: dict[int, int] = {}

    def kind(self, number: int, token_ids: Ids[int]) -> int | None:
        """How many tokens were seen before, as they stand at the end."""
        places = self._places.setdefault(number, {})
        for end in range(
            self._done.get(number, SHORTEST), len(token_ids)
        ):  # what follows the last is unknown
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                places[tuple(token_ids[end - length : end])] = end
        self._done[number] = len(token_ids)
        for length in range(min(LONGEST, len(token_ids)), SHORTEST - 1, -1):
            place = places.get(tuple(token_ids[-length:]))
            if place is not None:
                self._found[number] = place
                return length
        return None

    def propose(self, number: int, token_ids: Ids[int], most: int) -> list[int]:
        """What followed there."""
        place = self._found[number]
        return list(token_ids[place : place + most])

    def behind(self, number: int, token_ids: Ids[int]) -> int:  # noqa: ARG002 -- it has read all in `kind`
        """None."""
        return 0

    def forget(self, number: int) -> None:
        """What is known of a text."""
        for kept in (self._done, self._places, self._found):
            kept.pop(number, None)


@dataclass
class _Text:
    """What a draft model knows of a text: where its keys and values lie, and whose they are."""

    blocks: list[int] = field(default_factory=list)
    known: list[int] = field(default_factory=list)


class DraftModel:
    """A smaller model with the same vocabulary, which guesses what it would say itself."""

    def __init__(
        self, decoder: Decoder, vocab_size: int, max_tokens: int, block_size: int = BLOCK_SIZE
    ) -> None:
        """`vocab_size`: of the model that it guesses for; of embeddings the one may have more rows.
        `max_tokens`: whose keys and values it may keep, of all texts together."""
        self.decoder, self.vocab_size, self.block_size = decoder, vocab_size, block_size
        self.num_blocks, self._pools = max_tokens // block_size, len(reaches_of(decoder.spec))
        counts = [self.num_blocks] * self._pools
        cache = PagedCache(decoder.spec, counts, block_size, decoder.dtype, decoder.device)
        self._forward = forward_over(decoder, cache)
        self._free = list(range(self.num_blocks))
        self._texts: dict[int, _Text] = {}

    def _missing(self, number: int, length: int) -> int:
        """Blocks that a text of so many tokens needs more than it has."""
        held = self._texts[number].blocks if number in self._texts else ()
        return -(-length // self.block_size) - len(held)

    def kind(self, number: int, token_ids: Ids[int]) -> int | None:
        """One kind, as far as the draft model's context and memory go."""
        length = len(token_ids) + MOST
        fits = self._missing(number, length) <= len(self._free)
        return 0 if fits and length <= self.decoder.spec.max_position_embeddings else None

    def behind(self, number: int, token_ids: Ids[int]) -> int:
        """All of a text that is new to it, else what was said since the last time."""
        return len(token_ids) - (len(self._texts[number].known) if number in self._texts else 0)

    @torch.inference_mode()
    def propose(self, number: int, token_ids: Ids[int], most: int) -> list[int]:
        """What it would say, greedily."""
        ids, longest = list(token_ids), len(token_ids) + most
        text = self._texts.setdefault(number, _Text())
        for _ in range(self._missing(number, longest)):
            text.blocks.append(self._free.pop())
        same = next(
            (n for n, (a, b) in enumerate(zip(text.known, ids, strict=False)) if a != b), len(text.known)
        )
        if self.decoder.regime(longest) != self.decoder.regime(len(text.known)):
            same = 0
        guesses: list[int] = []
        at = min(same, len(ids) - 1)  # the last is always computed: its logits are wanted
        text.known = ids[:at]
        while len(guesses) < most:
            for begin in range(at, len(ids) + len(guesses), PREFILL):
                piece = (ids + guesses)[begin : begin + PREFILL]
                part = Part(begin, len(piece), 1, [text.blocks] * self._pools)
                hidden = self._forward.hidden(piece, [part], [longest])
            at = len(ids) + len(guesses)
            text.known = (ids + guesses)[:at]
            logits = self._forward.logits(hidden[-1:])[0]
            guesses.append(int(logits[0, : self.vocab_size].argmax()))
        return guesses

    def forget(self, number: int) -> None:
        """The cache of a text."""
        text = self._texts.pop(number, None)
        self._free += [] if text is None else text.blocks


class Speculation:
    """Decides, by what steps have taken and how often guesses were right, how many pay, if any do."""

    def __init__(self, proposer: Proposer) -> None:
        self.proposer = proposer
        self.guessed = self.accepted = self.accepted_in_step = 0
        self.saved_s = 0.0  # what the right guesses would have taken, less what guessing has cost
        self._right: dict[tuple[int, int], tuple[float, float]] = {}  # and checked, by sequence and kind
        self._kind: dict[int, int] = {}  # of the guesses that are being checked
        self._idle: dict[int, int] = {}  # chances that were not taken
        self._seconds: dict[int, float] = {}  # that a step of so many tokens takes
        self._guess_s = 0.0  # that one guess takes to make
        self._guessing_s = 0.0  # that all of this step's have taken
        self._known: set[int] = set()  # sequences that the proposer knows

    def guess(self, running: Ids[Sequence], regime: Callable[[int], object]) -> None:
        """Gives the sequences that wait for their next token guesses of what it will be, where they pay and
        stay within one `regime` of lengths."""
        self.accepted_in_step, self._guessing_s = 0, 0.0
        for gone in self._known.difference(sequence.number for sequence in running):
            self._known.discard(gone)  # preempted: what is known of it takes memory
            self.proposer.forget(gone)
        ready = []
        for sequence in running:
            length = len(sequence.token_ids)
            if not sequence.is_prefill and regime(length) == regime(length + MOST):
                ready.append(sequence)
            sequence.draft = []
        try:
            self._guess(ready)
        except Exception:  # whatever is the matter with guesses, answers go on without
            for sequence in ready:
                sequence.draft = []

    def _guess(self, sequences: Ids[Sequence]) -> None:
        costs = self._costs(len(sequences)) if sequences else None
        for sequence in sequences:
            number, ids = sequence.number, sequence.token_ids
            room = min(MOST, sequence.max_tokens - sequence.num_answer - 1)
            if costs is None or room <= 0:
                continue
            self._known.add(number)
            kind = self.proposer.kind(number, ids)
            count = 0 if kind is None else self._worth(number, kind, costs, room)
            if kind is not None and count:
                begin, reads = time.perf_counter(), self.proposer.behind(number, ids)
                sequence.draft = self.proposer.propose(number, ids, count)
                spent = time.perf_counter() - begin
                self._guessing_s += spent
                if reads <= MOST + 1:  # what a whole prompt takes to read is no measure
                    self._guess_s = _smooth(self._guess_s, spent / count)
                self._kind[number] = kind

    def _costs(self, num_sequences: int) -> list[float] | None:
        """What k guesses for each sequence cost one of them, in tokens; None until a step without has been
        timed."""
        plain = self._seconds.get(num_sequences)
        if plain is None:
            return None
        times = (self._time(num_sequences * (k + 1)) - plain for k in range(MOST + 1))
        return [(more + num_sequences * k * self._guess_s) / plain for k, more in enumerate(times)]

    def _time(self, tokens: int) -> float:
        """Of a step with so many tokens: measured, or between two that are. Beyond all of them that of the
        longest, so that more is tried once."""
        below = max(n for n in self._seconds if n <= tokens)
        above = min((n for n in self._seconds if n >= tokens), default=below)
        share = (tokens - below) / (above - below) if above > below else 0.0
        return self._seconds[below] + share * (self._seconds[above] - self._seconds[below])

    def _worth(self, number: int, kind: int, costs: list[float], room: int) -> int:
        """How many guesses bring the most tokens beyond what they cost."""
        right, checked = self._right.get((number, kind), (PRIOR[0] * PRIOR[1], PRIOR[1]))
        rate, expected, best, gain = right / checked, 0.0, 0, 0.0
        for k in range(1, room + 1):
            expected += rate**k
            if expected - costs[k] > gain:
                best, gain = k, expected - costs[k]
        if best == 0:
            self._idle[number] = self._idle.get(number, 0) + 1
            return min(2, room) if self._idle[number] % RETRY == 0 else 0
        return best

    def learn(self, scheduled: Ids[Scheduled], seconds: float) -> None:
        """What a step has taken, its guessing included."""
        if any(part.count != part.num_logits for part in scheduled):
            return  # prompts were in it
        tokens, plain = sum(part.count for part in scheduled), self._seconds.get(len(scheduled))
        if tokens > len(scheduled) and plain is not None:
            self.saved_s += plain * (1 + self.accepted_in_step / len(scheduled)) - seconds
        self._seconds[tokens] = _smooth(self._seconds.get(tokens, 0.0), seconds - self._guessing_s)

    def checked(self, part: Scheduled, accepted: int) -> None:
        """What came of a sequence's guesses."""
        number, kind = part.sequence.number, self._kind.pop(part.sequence.number, 0)
        right, checked = self._right.get((number, kind), (PRIOR[0] * PRIOR[1], PRIOR[1]))
        # Behind the first wrong one nothing can be said of the others.
        looked_at = min(accepted + 1, len(part.draft))
        self._right[number, kind] = right * MEMORY + accepted, checked * MEMORY + looked_at
        self.guessed += len(part.draft)
        self.accepted += accepted
        self.accepted_in_step += accepted

    def forget(self, number: int) -> None:
        """The sequence has ended."""
        self.proposer.forget(number)
        self._known.discard(number)
        self._idle.pop(number, None)
        self._kind.pop(number, None)
        for key in [key for key in self._right if key[0] == number]:
            del self._right[key]


def _smooth(old: float, new: float) -> float:
    return new if not old else old + SMOOTHING * (new - old)
