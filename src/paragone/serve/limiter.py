"""How much may be asked for: by everybody together, and by each key. Counted before any work."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from paragone.serve.errors import ApiError, overloaded
from paragone.serve.keys import Key, Usage

MINUTE_S = 60.0


@dataclass
class _Account:
    """What a key has asked for in the last minute, and what it has now."""

    starts: deque[float] = field(default_factory=deque)
    tokens: deque[tuple[float, int]] = field(default_factory=deque)
    token_sum: int = 0
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

    @contextmanager
    def admitted(self, key: Key | None) -> Iterator[None]:
        """A place for a request, as long as the context lasts. Raises ApiError (503, 429) where there is
        none."""
        if self.draining:
            error = overloaded("the server is being stopped")
            error.headers |= {"Connection": "close"}
            raise error
        if self.inside >= self.most:
            raise overloaded(
                f"{self.inside} requests are inside already, which is all that fit; try again later"
            )
        account = None if key is None else self._enter(key)
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
            if account is not None:
                account.running -= 1

    def _enter(self, key: Key) -> _Account:
        now = time.monotonic()
        account = self._accounts.setdefault(key.id, _Account())
        account.forget(now)
        if key.concurrent is not None and account.running >= key.concurrent:
            raise _too_many(f"this key may have {key.concurrent} requests at once", 1)
        if key.requests_per_minute is not None and len(account.starts) >= key.requests_per_minute:
            wait = MINUTE_S - (now - account.starts[0])
            raise _too_many(f"this key may ask {key.requests_per_minute} times a minute", wait)
        if key.tokens_per_minute is not None and account.token_sum >= key.tokens_per_minute:
            wait = MINUTE_S - (now - account.tokens[0][0])
            raise _too_many(f"this key may use {key.tokens_per_minute} tokens a minute", wait)
        account.starts.append(now)
        account.running += 1
        return account

    def count(self, key: Key | None, prompt_tokens: int, completion_tokens: int) -> None:
        """What a request has used, when it ends."""
        if key is None:
            return
        account = self._accounts.setdefault(key.id, _Account())
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


def _too_many(what: str, wait: float) -> ApiError:
    seconds = max(1, int(wait + 0.999))
    return ApiError(
        429, "rate_limit_exceeded", f"{what}; try again in {seconds} s", headers={"Retry-After": str(seconds)}
    )
