"""From what a request asks of its answer to a grammar that is known to be usable.

Grammars are strangers' programs: they are made and tried in a process that is killed after two seconds, and
what came of each is remembered within bounds.
"""

import asyncio
import hashlib
import json
import sys
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paragone import limits
from paragone.serve.errors import ApiError, overloaded
from paragone.serve.schemas import (
    JsonObjectFormat,
    JsonSchemaFormat,
    Sampling,
    StructuredOutputs,
)
from paragone.text.killable import LineProcess, ProcessEnded, TookTooLong


@dataclass(frozen=True)
class Wanted:
    """A grammar in a client's words. `param` is the field that it came from."""

    kind: str  # json_schema, regex, choice, grammar, lark
    source: Any
    param: str


def wanted(request: Sampling) -> Wanted | None:
    """What a request asks of its answer; None where any text will do. Raises ApiError where it asks twice."""
    asked = request.response_format, request.structured_outputs
    if asked[0] is not None and asked[1] is not None:
        raise ApiError(
            400, "invalid_value", "give response_format or structured_outputs, not both", "structured_outputs"
        )
    form = request.response_format
    if isinstance(form, JsonObjectFormat):
        return Wanted("json_schema", {"type": "object"}, "response_format")
    if isinstance(form, JsonSchemaFormat):
        schema = form.json_schema.schema
        return Wanted("json_schema", {} if schema is None else schema, "response_format")
    return None if request.structured_outputs is None else _structured(request.structured_outputs)


def _structured(given: StructuredOutputs) -> Wanted:
    forms: dict[str, tuple[str, Any]] = {}
    if given.json is not None:
        forms["json"] = "json_schema", given.json
    if given.regex is not None:
        forms["regex"] = "regex", given.regex
    if given.choice is not None:
        forms["choice"] = "choice", given.choice
    if given.grammar is not None:
        forms["grammar"] = "grammar", given.grammar
    if given.json_object:
        forms["json_object"] = "json_schema", {"type": "object"}
    if len(forms) != 1:
        found = ", ".join(forms) or "none"
        raise ApiError(
            400,
            "invalid_value",
            f"structured_outputs needs one of its fields, not {found}",
            "structured_outputs",
        )
    ((name, (kind, source)),) = forms.items()
    return Wanted(kind, source, f"structured_outputs.{name}")


class GrammarCheck:
    """The process that tries grammars, and what it has said."""

    def __init__(self, seconds: float = limits.GRAMMAR_SECONDS) -> None:
        bounds = {
            "memory": limits.GRAMMAR_MEMORY_BYTES,
            "lexer_states": limits.GRAMMAR_LEXER_STATES,
            "step_fuel": limits.GRAMMAR_STEP_FUEL,
        }
        worker = str(Path(__file__).with_name("grammar_worker.py"))
        first = b'{"kind": "regex", "source": "a"}\n'
        self.process = LineProcess([sys.executable, "-I", worker, json.dumps(bounds)], seconds, first)
        self._known: OrderedDict[bytes, dict[str, str]] = OrderedDict()
        self._held = 0
        # A thread of its own: who waits for hostile grammars is whoever sends grammars, nobody else.
        self._thread = ThreadPoolExecutor(1, "grammars")
        self._waiting = 0

    @property
    def known(self) -> tuple[int, int]:
        """How many are remembered, and their bytes."""
        return len(self._known), self._held

    async def tried(self, asked: Wanted) -> str:
        """As `grammar`, beside the event loop. Raises ApiError (503) where too many wait already."""
        check_size(asked.source, asked.param)
        if hashlib.sha256(_line(asked)).digest() in self._known:
            return self.grammar(asked)
        if self._waiting >= limits.GRAMMARS_WAITING:
            raise overloaded(f"{self._waiting} grammars are waiting to be tried")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self.grammar, asked)
        finally:
            self._waiting -= 1

    def grammar(self, asked: Wanted) -> str:
        """llguidance's text of it; takes up to two seconds. Raises ApiError where it cannot be used."""
        line = _line(asked)
        if len(line) > limits.GRAMMAR_BYTES:
            message = f"{asked.param} is larger than {limits.GRAMMAR_BYTES} bytes"
            raise ApiError(400, "grammar_too_complex", message, asked.param)
        key = hashlib.sha256(line).digest()
        found = self._known.get(key)
        if found is None or time.monotonic() > float(found.get("until", "inf")):
            try:
                found = json.loads(self.process.ask(line))
            except (TookTooLong, ProcessEnded) as err:
                # On a busy machine time runs out, or memory, without the grammar's fault.
                found = {"limit": str(err), "until": str(time.monotonic() + limits.GRAMMAR_LIMIT_SECONDS)}
        self._remember(key, found)
        if "grammar" in found:
            return str(found["grammar"])
        if "limit" in found or any(word in found["error"] for word in ("too complex", "too large", "fuel")):
            message = f"{asked.param}: the grammar is too complex: {found.get('limit') or found['error']}"
            raise ApiError(400, "grammar_too_complex", message, asked.param)
        raise ApiError(400, "invalid_grammar", f"{asked.param}: {found['error']}", asked.param)

    def _remember(self, key: bytes, found: dict[str, str]) -> None:
        """What was asked for last stays longest."""
        self._held += _size(found) - _size(self._known.pop(key, None))
        self._known[key] = found
        while len(self._known) > limits.GRAMMARS or self._held > limits.GRAMMAR_CACHE_BYTES:
            _, old = self._known.popitem(last=False)
            self._held -= _size(old)


def check_size(source: Any, param: str) -> None:
    """Raises ApiError where a grammar is too large, before anything is made of it."""
    left, waiting = limits.GRAMMAR_BYTES, [source]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        left -= len(value) if isinstance(value, str) else 1
        if left < 0 or len(waiting) > limits.GRAMMAR_BYTES:
            message = f"{param} is larger than {limits.GRAMMAR_BYTES} bytes"
            raise ApiError(400, "grammar_too_complex", message, param)


def _line(asked: Wanted) -> bytes:
    return json.dumps({"kind": asked.kind, "source": asked.source}).encode() + b"\n"


def _size(found: dict[str, str] | None) -> int:
    return 0 if found is None else 32 + sum(len(key) + 4 * len(value) for key, value in found.items())
