"""Every comparison made on this machine, in one SQLite file."""

import json
import sqlite3
from contextlib import closing
from typing import Any

from paragone import paths
from paragone.errors import NotFound, WriteFailed

SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY,
    started TEXT NOT NULL,
    candidates TEXT NOT NULL,
    choice TEXT,
    result TEXT NOT NULL
)
"""


def _open() -> sqlite3.Connection:
    path = paths.history_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=10)
        connection.execute(SCHEMA)
    except (OSError, sqlite3.Error) as err:
        raise WriteFailed(f"{path}: the history cannot be opened: {err}") from None
    return connection


def save_run(result: dict[str, Any]) -> int:
    """Stores a comparison's result; returns its number."""
    labels = ", ".join(c["label"] for c in result["candidates"])
    row = (result["started"], labels, result["recommendation"]["choice"], json.dumps(result))
    try:
        with closing(_open()) as connection, connection:
            cursor = connection.execute(
                "INSERT INTO runs (started, candidates, choice, result) VALUES (?, ?, ?, ?)", row
            )
            return int(cursor.lastrowid or 0)
    except sqlite3.Error as err:
        raise WriteFailed(f"{paths.history_file()}: {err}") from None


def list_runs() -> list[dict[str, Any]]:
    """Number, start, candidates and choice of every run, newest first."""
    if not paths.history_file().exists():
        return []
    with closing(_open()) as connection:
        rows = connection.execute("SELECT id, started, candidates, choice FROM runs ORDER BY id DESC")
        return [dict(zip(("id", "started", "candidates", "choice"), row, strict=True)) for row in rows]


def load_run(number: int | None) -> dict[str, Any]:
    """A run's result by number, the newest for None. Raises NotFound naming the numbers there are."""
    runs = list_runs()
    if not runs:
        raise NotFound("no runs yet: `paragone compare` makes the first")
    wanted = runs[0]["id"] if number is None else number
    with closing(_open()) as connection:
        row = connection.execute("SELECT result FROM runs WHERE id = ?", (wanted,)).fetchone()
    if row is None:
        raise NotFound(f"no run {wanted}: there are {runs[-1]['id']} to {runs[0]['id']}")
    return json.loads(row[0]) | {"id": wanted}  # type: ignore[no-any-return]
