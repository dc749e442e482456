"""How much may be asked for: by everybody together, and by each key. Counted before any work."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from paragone import limits
from paragone.serve.errors import ApiError, overloaded
from paragone.serve.keys import Key, Usage

MINUTE_S = 60.0
LEFT = 64  # the last who have left, within a minute: they tell how fast places become free


@dataclass
class _Account:
    """What a key has asked for in the last minute, and what it has now."""

    starts: deque[float] = field(default_factory=deque)
    tokens: deque[tuple[float, int]] = field(default_factory=deque)
    token_sum: int = 0
    reserved: int = 0  # by requests that have not ended
    running: int = 0

    def forget(self, now: float) -> None:
        while self.starts and now - self.starts[0] >= MINUTE_S:
            self.starts.popleft()
        while self.tokens and now - self.tokens[0][0] >= MINUTE_S:
            self.token_sum -= self.tokens.popleft()[1]


class Limiter:
    """Admits requests. `most` is how many may be inside at once, running and waiting."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.inside = 0
        self.draining = False
        self.used: dict[str, Usage] = {}  # since it was last written down, by key's id
        self._accounts: dict[str, _Account] = {}
        self._left: deque[float] = deque(maxlen=LEFT)

    def check(self, key: Key | None) -> None:
        """Raises ApiError (503, 429) where no request of a key would be taken now."""
        if self.draining:
            error = overloaded("the server is being stopped")
            error.headers |= {"Connection": "close"}
            raise error
        if self.inside >= self.most:
            raise self._full(f"{self.inside} requests are inside already, which is all that fit")
        if key is not None:
            self._check_key(key)

    def _full(self, what: str) -> ApiError:
        """Who comes back before half of those inside have left is refused again, most likely, and that costs
        the processors that work for the others."""
        within, now = limits.RETRY_SECONDS, time.monotonic()
        while self._left and now - self._left[0] >= MINUTE_S:
            self._left.popleft()
        if len(self._left) > 1:
            each = (now - self._left[0]) / (len(self._left) - 1)
            within = max(within, round(min(each * self.inside / 2, limits.RETRY_SECONDS_AT_MOST)))
        return overloaded(what, within)

    @contextmanager
    def admitted(self, key: Key | None) -> Iterator[None]:
        """A place for a request, as long as the context lasts. Raises ApiError (503, 429) where there is
        none."""
        self.check(key)
        account = None if key is None else self._account(key)
        if account is not None:
            account.starts.append(time.monotonic())
            account.running += 1
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
            self._left.append(time.monotonic())
            if account is not None:
                account.running -= 1

    def _account(self, key: Key) -> _Account:
        return self._accounts.setdefault(key.id, _Account())

    def _check_key(self, key: Key) -> None:
        now, account = time.monotonic(), self._account(key)
        account.forget(now)
        if key.concurrent is not None and account.running >= key.concurrent:
            raise _too_many(f"this key may have {key.concurrent} requests at once", 1)
        if key.requests_per_minute is not None and len(account.starts) >= key.requests_per_minute:
            wait = MINUTE_S - (now - account.starts[0])
            raise _too_many(f"this key may ask {key.requests_per_minute} times a minute", wait)
        self._check_tokens(key, account, now)

    @staticmethod
    def _check_tokens(key: Key, account: _Account, now: float) -> None:
        used = account.token_sum + account.reserved
        if key.tokens_per_minute is not None and used >= key.tokens_per_minute:
            wait = MINUTE_S - (now - account.tokens[0][0]) if account.tokens else 1.0
            raise _too_many(f"this key may use {key.tokens_per_minute} tokens a minute", wait)

    @contextmanager
    def places(self, more: int, param: str) -> Iterator[None]:
        """Places for the other answers of a request that has one already. Raises ApiError where they can
        never be had (400), or not now (503)."""
        if more >= self.most:
            message = f"{more + 1} answers to one request, and {self.most} fit at most"
            raise ApiError(400, "invalid_value", message, param)
        if self.inside + more > self.most:
            raise self._full(f"{self.inside} requests are inside already: {more} more do not fit")
        self.inside += more
        try:
            yield
        finally:
            self.inside -= more

    @contextmanager
    def reserved(self, key: Key | None, tokens: int) -> Iterator[None]:
        """Tokens that a request may use, counted against its key's limit until it has ended. Raises ApiError
        (429) where others that came at the same time have reserved all."""
        account = None if key is None else self._account(key)
        if key is not None and account is not None:
            self._check_tokens(key, account, time.monotonic())
            account.reserved += tokens
        try:
            yield
        finally:
            if account is not None:
                account.reserved -= tokens

    def count(self, key: Key | None, prompt_tokens: int, completion_tokens: int) -> None:
        """What a request has used, when it ends."""
        if key is None:
            return
        account = self._account(key)
        tokens = prompt_tokens + completion_tokens
        account.tokens.append((time.monotonic(), tokens))
        account.token_sum += tokens
        used = self.used.setdefault(key.id, Usage())
        used.requests += 1
        used.prompt_tokens += prompt_tokens
        used.completion_tokens += completion_tokens

    def take_used(self) -> dict[str, Usage]:
        """What has been used since the last call."""
        used, self.used = self.used, {}
        return used

    def give_back(self, used: dict[str, Usage]) -> None:
        """What could not be written down: it comes with the next."""
        for key, usage in used.items():
            mine = self.used.setdefault(key, Usage())
            mine.requests += usage.requests
            mine.prompt_tokens += usage.prompt_tokens
            mine.completion_tokens += usage.completion_tokens


def _too_many(what: str, wait: float) -> ApiError:
    seconds = max(1, int(wait + 0.999))
    return ApiError(
        429, "rate_limit_exceeded", f"{what}; try again in {seconds} s", headers={"Retry-After": str(seconds)}
    )
