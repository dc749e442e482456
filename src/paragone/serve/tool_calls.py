"""Calls of tools in an answer that arrives piece by piece. What looks like a call and turns out to be none is
given out as text: nothing of an answer is ever lost."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from paragone.serve.tool_formats import ToolFormat

ARGUMENT_KEYS = "arguments", "parameters"


@dataclass(frozen=True)
class Said:
    """Text that is no call."""

    text: str


@dataclass(frozen=True)
class Called:
    """A call begins (with its name and id), or goes on with more of its arguments' JSON text."""

    index: int
    arguments: str
    name: str | None = None
    id: str | None = None


Event = Said | Called


class ToolParser:
    """Text in, events out. A call's arguments come as they are written, once its name is known. `names` are
    the tools': an object that names none of them is no call (None: any name will do)."""

    def __init__(self, form: ToolFormat, names: Collection[str] | None = None) -> None:
        self._form, self._names = form, names
        self._held = ""  # not yet decided
        self._call: _Call | None = None
        self._raw = ""  # of the call that is being read, to be given out if it is none
        self._begun = False  # anything but white space has come
        self._listing = False  # inside Mistral's list
        self._opening = ""  # what opened the call that is being read, to be given out with it
        self.count = 0

    def push(self, text: str) -> list[Event]:
        """What the next piece of text makes certain."""
        events: list[Event] = []
        self._held += text
        while self._held:
            before = self._held, self._call, self._listing
            if self._call is not None:
                self._inside(events)
            else:
                self._outside(events)
            if (self._held, self._call, self._listing) == before:
                break
        return events

    def finish(self) -> list[Event]:
        """The rest, at the end of the answer."""
        events: list[Event] = []
        if self._call is not None:
            if not (self._call.complete and self._call.announced):
                self._give_up(events)
            self._call = None
        rest, self._held = self._opening + self._held, ""
        self._opening = ""
        if rest.strip(" \n,;[]" if self._listing else None) or (rest and not self.count):
            events.append(Said(rest))
        return events

    def _outside(self, events: list[Event]) -> None:
        form, held = self._form, self._held
        if self._listing:  # between calls of a list, or behind it
            bare = held.lstrip(" \n,;]")
            if form.begin.startswith(bare):  # nothing yet, or half of the mark
                return
            bare = bare.removeprefix(form.begin).lstrip(" \n[")
            if not bare:
                return
            if bare[0] == "{" or (bare[0].isascii() and (bare[0].isalpha() or bare[0] == "_")):
                if not self.count:  # no call yet: what stands before it may still be text
                    self._opening += held[: len(held) - len(bare)]
                self._held = bare
                self._start()
            else:
                self._listing = False
                events += [Said(self._opening)] if self._opening else []
                self._opening = ""
            return
        starts = held.lstrip()
        if form.bare and not self._begun and starts.startswith("{"):
            self._opening = held[: len(held) - len(starts)]
            self._held, self._listing = starts, True
            self._start()
            return
        at = held.find(form.begin)
        if at >= 0:
            before, self._held = held[:at], held[at + len(form.begin) :]
            self._begun, self._opening = True, form.begin
            if before.strip():
                events.append(Said(before.rstrip() if self.count else before))
            elif not self.count:
                self._opening = before + form.begin
            self._listing = not form.end
            if form.end:
                self._start()
            return
        keep = next((n for n in range(len(form.begin) - 1, 0, -1) if held.endswith(form.begin[:n])), 0)
        if form.bare and not self._begun and not starts:
            return
        said, self._held = held[: len(held) - keep], held[len(held) - keep :]
        if said.strip() or (said and self._begun and not self.count):
            self._begun = True
            events.append(Said(said))
        elif not self.count:  # white space alone: nothing yet
            self._held = said + self._held

    def _start(self) -> None:
        self._call, self._raw, self._begun = _Call(), "", True

    def _inside(self, events: list[Event]) -> None:
        call = self._call
        assert call is not None  # noqa: S101 -- the caller has looked
        if call.complete:
            self._after(events, call)
            return
        used = call.feed(self._held)
        self._raw += self._held[:used]
        self._held = self._held[used:]
        unknown = call.name is not None and self._names is not None and call.name not in self._names
        if call.broken or unknown:
            self._give_up(events)
            return
        if call.name is not None and not call.announced:
            call.announced, call.index, self._opening = True, self.count, ""
            self.count += 1
            events.append(Called(call.index, call.take(), call.name, self._form.new_id()))
        elif call.announced and (more := call.take()):
            events.append(Called(call.index, more))
        if call.lacks_arguments():
            events.append(Called(call.index, "{}"))  # a client reads an object

    def _after(self, events: list[Event], call: "_Call") -> None:
        """Behind a whole call: its closing tag."""
        end = self._form.end
        if not call.announced:  # a JSON object without a name
            self._give_up(events)
            return
        if not end:
            self._call = None
            return
        bare = self._held.lstrip()
        if bare.startswith(end):
            self._held, self._call = bare[len(end) :], None
        elif not end.startswith(bare):  # the tag is missing: the call counts all the same
            self._call = None

    def _give_up(self, events: list[Event]) -> None:
        call = self._call
        assert call is not None  # noqa: S101
        if not call.announced:
            events.append(Said(self._opening + self._raw))
        self._call, self._listing, self._begun, self._opening = None, False, True, ""


def _unquoted(text: str) -> str:
    """The object inside a JSON text, or the text itself."""
    try:
        inner = json.loads(text)
        return inner if isinstance(json.loads(inner), dict) else text
    except (ValueError, TypeError, RecursionError):
        return text


class _Call:
    """A call's JSON object, read character by character: its name, and its arguments as they are written."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.index = 0
        self.announced = self.complete = self.broken = False
        self.empty = True  # no arguments have come
        self._depth = 0
        self._in_text = self._escaped = False
        self._text: list[str] | None = None  # a string at the first level
        self._key: str | None = None
        self._is_key = True
        self._arguments: list[str] = []
        self._named = ""  # of the form name[ARGS]{...}
        self._whole = False  # everything is arguments

    def lacks_arguments(self) -> bool:
        """Whether it is whole and has none."""
        return self.complete and self.announced and self.empty

    def take(self) -> str:
        """The arguments' text that has come since."""
        text = "".join(self._arguments)
        if (
            text.startswith('"') and self.empty
        ):  # an object that was written as a text: known when it is whole
            if not self.complete:
                return ""
            text = _unquoted(text)
        self._arguments.clear()
        self.empty = self.empty and not text
        return text

    def feed(self, text: str) -> int:
        """Reads on; how many characters were used."""
        for at, c in enumerate(text):
            if not self._read(c):
                self.broken = True
                return at
            if self.complete:
                return at + 1
        return len(text)

    def _read(self, c: str) -> bool:
        if self._depth == 0 and not self._whole:
            return self._before(c)
        inner = self._depth > 1 or self._whole  # inside a value at the first level, or all of it
        wanted = self._whole or (self._key in ARGUMENT_KEYS and not self._is_key)
        if self._in_text:
            if wanted and (inner or not self._is_key):
                self._arguments.append(c)
            if self._text is not None:
                self._text.append(c)
            if self._escaped:
                self._escaped = False
            elif c == "\\":
                self._escaped = True
            elif c == '"':
                self._in_text = False
                return self._text_done()
            return True
        if c == '"':
            self._in_text = True
            self._text = ['"'] if self._depth == 1 and not self._whole else None
            if wanted:
                self._arguments.append(c)
            return True
        if c in "{[":
            self._depth += 1
        elif c in "}]":
            self._depth -= 1
            if self._depth == 0:
                if self._whole:
                    self._arguments.append(c)
                self.complete = True
                return True
        elif self._depth == 1 and not self._whole:
            if c == ":":
                self._is_key = False
                return True
            if c == ",":
                self._is_key, self._key = True, None
                return True
        if wanted and not (c.isspace() and self._depth == 1 and not self._whole):
            self._arguments.append(c)
        return True

    def _before(self, c: str) -> bool:
        """Before the object: white space, or Mistral's name[ARGS]."""
        if c == "{":
            named = self._named.strip()
            if named:
                name = named.removesuffix("[ARGS]")
                if not name or not all(ch.isalnum() or ch in "_-" for ch in name):
                    return False
                self.name, self._whole = name, True
                self._arguments.append(c)
            self._depth = 1
            return True
        self._named += c
        return len(self._named) < 256 and c.isascii() and (c.isspace() or c.isalnum() or c in "_-[]")

    def _text_done(self) -> bool:
        if self._text is None:
            return True
        try:
            value: Any = json.loads("".join(self._text))
        except ValueError:
            return False
        if self._is_key:
            self._key = value
        elif self._key == "name":
            self.name = value
        self._text = None
        return True
