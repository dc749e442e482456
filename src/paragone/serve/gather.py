"""Tokens that follow each other faster than anybody reads go out together: each event costs the processors on
which the engine computes, in the process that speaks HTTP and at the client's, too."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from paragone import limits
from paragone.serve.messages import Delta

Key = tuple[int, int]  # request and choice


@dataclass
class Gathered:
    """What the steps of one engine gave and was not sent yet. Times are seconds, by one clock."""

    _held: dict[Key, Delta] = field(default_factory=dict)
    _sent: dict[Key, float] = field(default_factory=dict)  # when an answer's tokens last went out

    def put(self, deltas: Iterable[Delta]) -> None:
        """Takes what a step gave."""
        for delta in deltas:
            key = delta.request, delta.choice
            before = self._held.get(key)
            self._held[key] = delta if before is None else joined(before, delta)

    def take(self, now: float, interval: float = 0.0) -> tuple[Delta, ...]:
        """What is to be sent now: of every answer that begins or ends, and of those that had nothing for so
        long."""
        due = tuple(
            delta
            for key, delta in self._held.items()
            if delta.reason or now - self._sent.get(key, float("-inf")) >= interval
        )
        for delta in due:
            key = delta.request, delta.choice
            del self._held[key]
            if delta.reason:
                self._sent.pop(key, None)
            else:
                self._sent[key] = now
        return due

    def drop(self, request: int) -> None:
        """Nobody waits for its answers any more."""
        for kept in (self._held, self._sent):
            for key in [key for key in kept if key[0] == request]:
                del kept[key]

    def __len__(self) -> int:
        return len(self._held)


def interval(streams: int) -> float:
    """Seconds between two events of one of so many streams: an event costs the same whatever is in it."""
    shared = streams * limits.GATHER_SECONDS_A_STREAM
    return min(max(limits.GATHER_SECONDS, shared), limits.GATHER_SECONDS_AT_MOST)


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
