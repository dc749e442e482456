"""API keys: made, listed, revoked, counted. Only their SHA-256 is kept: a key is 256 random bits, so that
nothing slower is needed to keep it from being guessed.

One SQLite file, which the commands and running servers share.
"""

import hashlib
import hmac
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from paragone import paths
from paragone.errors import NotFound, UsageError, WriteFailed

PREFIX = "pk-"
_TABLES = """
create table if not exists keys (
    id text primary key, name text not null, hash blob not null unique, created real not null, revoked real,
    requests_per_minute integer, tokens_per_minute integer, concurrent integer);
create table if not exists usage (
    key text not null, day text not null, requests integer not null default 0,
    prompt_tokens integer not null default 0, completion_tokens integer not null default 0,
    primary key (key, day));
"""


@dataclass(frozen=True)
class Key:
    """What is known of a key. `id` is the beginning of its hash; a limit of None is none."""

    id: str
    name: str
    hash: bytes
    created: float
    revoked: float | None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None


@dataclass
class Usage:
    """What was used with a key."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class KeyStore:
    """The keys of this machine, or of a file of one's own."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or paths.home() / "keys.sqlite3"

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite would let others read it
            with closing(sqlite3.connect(self.path, timeout=10)) as connection:
                connection.executescript(_TABLES)
                with connection:
                    yield connection
        except (sqlite3.Error, OSError) as err:
            raise WriteFailed(f"{self.path}: {err}") from None

    def create(
        self,
        name: str,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        concurrent: int | None = None,
    ) -> tuple[str, Key]:
        """A new key's text, which is not kept, and what is kept."""
        if not name.strip() or len(name) > 128 or not name.isprintable():
            raise UsageError("a key's name is 1 to 128 printable characters")
        text = PREFIX + secrets.token_urlsafe(32)
        digest = digest_of(text)
        limits = requests_per_minute, tokens_per_minute, concurrent
        key = Key(digest.hex()[:12], name, digest, time.time(), None, *limits)
        with self._open() as connection:
            row = key.id, key.name, key.hash, key.created, None, *limits
            connection.execute("insert into keys values (?, ?, ?, ?, ?, ?, ?, ?)", row)
        return text, key

    def all(self) -> list[Key]:
        """Every key, revoked ones too, the oldest first."""
        with self._open() as connection:
            rows = connection.execute("select * from keys order by created").fetchall()
        return [Key(*row) for row in rows]

    def revoke(self, name: str) -> Key:
        """Revokes a key by its id, the beginning of it, or its name. Raises NotFound, or UsageError where
        several are meant."""
        found = [
            k for k in self.all() if k.revoked is None and name and (k.id.startswith(name) or k.name == name)
        ]
        if not found:
            raise NotFound(f"no key {name!r}: `paragone keys list` shows them")
        if len(found) > 1:
            raise UsageError(f"{name!r} means several keys: {', '.join(k.id for k in found)}")
        with self._open() as connection:
            connection.execute("update keys set revoked = ? where id = ?", (time.time(), found[0].id))
        return found[0]

    def add_usage(self, used: Mapping[str, Usage]) -> None:
        """Adds to today's counts, by key's id."""
        day = time.strftime("%Y-%m-%d", time.gmtime())
        rows = [(key, day, u.requests, u.prompt_tokens, u.completion_tokens) for key, u in used.items()]
        with self._open() as connection:
            connection.executemany(
                "insert into usage values (?, ?, ?, ?, ?) on conflict (key, day) do update set "
                "requests = requests + excluded.requests, "
                "prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
                "completion_tokens = completion_tokens + excluded.completion_tokens",
                rows,
            )

    def usage(self) -> dict[str, Usage]:
        """What was used with each key, all days together."""
        query = (
            "select key, sum(requests), sum(prompt_tokens), sum(completion_tokens) from usage group by key"
        )
        with self._open() as connection:
            return {key: Usage(*counts) for key, *counts in connection.execute(query)}


class KeyRing:
    """A server's view of the keys that count: read again when the file has changed."""

    def __init__(self, keys: list[Key]) -> None:
        self._keys = [key for key in keys if key.revoked is None]

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, text: bytes) -> Key | None:
        """The key of this text. Every one is compared, each in the same time, whatever the text."""
        digest, found = hashlib.sha256(text).digest(), None
        for key in self._keys:
            if hmac.compare_digest(digest, key.hash):
                found = key
        return found


def digest_of(text: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(text.encode()).digest()
