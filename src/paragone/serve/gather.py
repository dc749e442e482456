"""Tokens that follow each other faster than anybody sees go out together: each message costs the processors
on which the engine computes, at the other end of the socket and at the client's, too."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from paragone import limits
from paragone.serve.messages import Delta

Key = tuple[int, int]  # request and choice


@dataclass
class Gathered:
    """What the steps of one engine gave and was not sent yet. Times are seconds, by one clock."""

    _held: dict[Key, Delta] = field(default_factory=dict)
    _known: frozenset[Key] = frozenset()  # whose tokens the last message had
    _sent: float = float("-inf")

    def put(self, deltas: Iterable[Delta]) -> None:
        """Takes what a step gave."""
        for delta in deltas:
            key = delta.request, delta.choice
            before = self._held.get(key)
            self._held[key] = delta if before is None else joined(before, delta)

    def due(self, now: float) -> bool:
        """Whether somebody waits for it: an answer that begins or ends, or one that is followed by eye."""
        if now - self._sent >= limits.GATHER_SECONDS:
            return True
        return any(key not in self._known or delta.reason for key, delta in self._held.items())

    def take(self, now: float) -> tuple[Delta, ...]:
        """All of it, to be sent now."""
        deltas = tuple(self._held.values())
        self._known, self._sent = frozenset(self._held), now
        self._held.clear()
        return deltas

    def __len__(self) -> int:
        return len(self._held)


def joined(first: Delta, then: Delta) -> Delta:
    """Two deltas of one answer, in order, as one."""
    return Delta(
        first.request,
        first.choice,
        first.text + then.text,
        (*first.token_ids, *then.token_ids),
        (*first.logprobs, *then.logprobs),
        then.reason,
        then.error,
        then.cached_tokens,
        then.seed,
        first.prompt_logprobs or then.prompt_logprobs,
    )
