"""What the server writes about itself: one event a line, as JSON or for a person. Prompts, answers and keys
are never among it."""

import json
import sys
import time
from typing import Any, Literal, TextIO

LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}
Level = Literal["debug", "info", "warning", "error"]


class Log:
    """Events to a stream. Values are JSON's; a text cannot begin a line of its own."""

    def __init__(self, form: Literal["json", "text"], level: Level, out: TextIO | None = None) -> None:
        self._json, self._least, self._out = form == "json", LEVELS[level], out or sys.stderr

    def event(self, name: str, *, level: Level = "info", **values: Any) -> None:
        """Writes one, if its level is asked for."""
        if LEVELS[level] < self._least:
            return
        values = {key: value for key, value in values.items() if value is not None}
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + "Z"
        if self._json:
            line = json.dumps({"time": now, "level": level, "event": name} | values)
        else:
            shown = " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
            line = f"{now} {level} {name} {shown}".rstrip()
        self._out.write(line + "\n")
        self._out.flush()
