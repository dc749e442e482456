"""How families write calls of tools: what a model is told, what it writes, what may be asked of it.

| format | a call |
|---|---|
| hermes (Qwen 2.5 and 3, Hermes) | `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` |
| mistral | `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`, later `[TOOL_CALLS]name[ARGS]{...}` |
| llama3 (Llama 3.1 to 3.3) | `{"name": ..., "parameters": {...}}`, perhaps behind `<|python_tag|>` |
| generic | as hermes, told in a message, for models whose template knows no tools |
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paragone.text.chat import Message


@dataclass(frozen=True)
class ToolFormat:
    """`begin` opens calls and `end` closes each (empty: they end with the answer); `bare` where a call may
    also begin with a brace alone; `arguments` is the key that they are under; `listed` where they stand in a
    list; `told` where a message has to say how; `id_chars` where a call's id has so many letters and
    digits."""

    name: str
    begin: str
    end: str
    arguments: str = "arguments"
    bare: bool = False
    listed: bool = False
    told: bool = False
    id_chars: int | None = None

    def new_id(self) -> str:
        """For a call."""
        return f"call_{uuid.uuid4().hex[:24]}" if self.id_chars is None else uuid.uuid4().hex[: self.id_chars]

    def known_id(self, given: str) -> str:
        """An id as the model's template takes it: a call's and its answer's stay the same."""
        if self.id_chars is None:
            return given
        plain = "".join(c for c in given if c.isascii() and c.isalnum())
        return plain[-self.id_chars :].rjust(self.id_chars, "0")


HERMES = ToolFormat("hermes", "<tool_call>", "</tool_call>")
MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]", "", listed=True, id_chars=9)
LLAMA3 = ToolFormat("llama3", "<|python_tag|>", "", arguments="parameters", bare=True)
GENERIC = ToolFormat("generic", "<tool_call>", "</tool_call>", told=True)

INSTRUCTIONS = """You may call functions. Their signatures, in JSON:
{tools}
To call one, write exactly
<tool_call>{{"name": "<function name>", "arguments": {{<arguments as JSON>}}}}</tool_call>
and nothing after it. The answer comes in a message of the role "tool"."""


def format_of(template: str | None) -> ToolFormat:
    """By what the model's own template writes."""
    template = template or ""
    if "tools" in template:
        if "<tool_call>" in template:
            return HERMES
        if "[TOOL_CALLS]" in template:
            return MISTRAL
        if "<|python_tag|>" in template or '"parameters"' in template:
            return LLAMA3
    return GENERIC


def with_tools(
    form: ToolFormat,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]],
    *,
    system: bool = True,
) -> list[Message]:
    """The conversation as it goes to the template, which gets the tools, too, where it knows them. `system`:
    it takes messages of the system; without, the user's first words are preceded by what has to be said."""
    if not form.told:
        return [_with_known_ids(form, message) for message in messages]
    text = INSTRUCTIONS.format(tools="\n".join(json.dumps(t["function"]) for t in tools)) if tools else ""
    told = _joined([_told(message) for message in messages])
    if not text:
        return told
    if told[0]["role"] == "system":
        return [{"role": "system", "content": f"{told[0]['content']}\n\n{text}"}, *told[1:]]
    if system:
        return [{"role": "system", "content": text}, *told]
    if told[0]["role"] == "user":
        return [{"role": "user", "content": f"{text}\n\n{told[0]['content']}"}, *told[1:]]
    return [{"role": "user", "content": text}, *told]


def _with_known_ids(form: ToolFormat, message: Message) -> Message:
    out = message.copy()
    if "tool_call_id" in out:
        out["tool_call_id"] = form.known_id(out["tool_call_id"])
    if "tool_calls" in out:
        out["tool_calls"] = [call | {"id": form.known_id(call["id"])} for call in out["tool_calls"]]
    return out


def _joined(messages: Sequence[Message]) -> list[Message]:
    """Turns of a user that follow each other are one: templates may ask that roles take turns."""
    out: list[Message] = []
    for message in messages:
        if out and message["role"] == out[-1]["role"] == "user":
            out[-1] = out[-1] | {"content": f"{out[-1]['content']}\n{message['content']}"}
        else:
            out.append(message)
    return out


def _told(message: Message) -> Message:
    """A message of tools in words that every template has."""
    content = message.get("content") or ""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>{content}</tool_response>"}
    calls = [
        json.dumps({"name": call["function"]["name"], "arguments": call["function"]["arguments"]})
        for call in message.get("tool_calls") or ()
    ]
    written = "\n".join(f"<tool_call>{call}</tool_call>" for call in calls)
    return {"role": message["role"], "content": "\n".join(filter(None, (content, written)))}


def forced_grammar(
    form: ToolFormat, functions: Sequence[dict[str, Any]], special: dict[str, int], *, several: bool
) -> str:
    """A Lark grammar of calls to one of these functions. What is a control token in this vocabulary is
    written as that token."""

    def text(spelled: str) -> str:
        return f"<[{special[spelled]}]>" if spelled in special else json.dumps(spelled)

    one = {"anyOf": [_call_schema(form, function) for function in functions]}
    compact = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    schema: dict[str, Any] = one | {"x-guidance": compact}
    if form.listed:
        schema = {"type": "array", "items": one, "minItems": 1, "x-guidance": compact}
        if not several:
            schema["maxItems"] = 1
    begin = "" if form.bare else text(form.begin) + " "
    end = f" {text(form.end)}" if form.end else ""
    call = f"{begin}json{end}"
    more = f'("\\n" {call})*' if several and form.end else ""
    return f"start: {call} {more}\njson: %json {json.dumps(schema)}\n"


def _call_schema(form: ToolFormat, function: dict[str, Any]) -> dict[str, Any]:
    arguments = function.get("parameters") or {"type": "object", "properties": {}}
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, form.arguments: arguments},
        "required": ["name", form.arguments],
        "additionalProperties": False,
    }
