"""Conversations to token ids, by the model's own chat template.

What the template writes may hold control tokens; what the messages say may not. Before rendering, special
tokens that are spelled inside a message are broken with a mark that no text contains; afterwards the
unbroken ones are the template's own.
"""

import atexit
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from paragone import limits
from paragone.errors import BadConfiguration, TemplateError, TemplateLimit, UsageError
from paragone.text.killable import LineProcess, ProcessEnded, TookTooLong
from paragone.text.tokenizer import Tokenizer

MARK = "\U0010fffe"  # a noncharacter: Unicode reserves it for use inside a program
ROLES = ("system", "user", "assistant", "tool")
MORE_FIELDS = "name", "tool_calls", "tool_call_id"  # of a message, for the template


class Message(TypedDict):
    """One turn of a conversation. An assistant's may have calls of tools, in the form of OpenAI's API but
    with arguments as an object; a tool's answers one of them."""

    role: str
    content: NotRequired[str | None]
    name: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message], **options: Any) -> list[int]:
    """Token ids of a conversation, ready for the model to answer.

    Raises BadConfiguration where the model has no template, TemplateError where it fails or refuses the
    conversation, TemplateLimit where it takes too much.
    """
    parts = split_special(tokenizer, render_chat(tokenizer, messages, **options))
    ids: list[int] = []
    for part in parts:
        if isinstance(part, int):
            ids.append(part)
        else:
            ids += tokenizer.encode(part, first=not ids)
    # Most templates write BOS themselves; where one leaves it out and the model wants it, it goes first.
    if tokenizer.prefix and ids[: len(tokenizer.prefix)] != tokenizer.prefix:
        ids = tokenizer.prefix + ids
    return ids


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[dict[str, Any]] | None = None,
    add_generation_prompt: bool = True,
) -> str:
    """The template's text, with special tokens that messages and tools spell broken by MARK."""
    if tokenizer.chat_template is None:
        raise BadConfiguration(
            "this model has no chat template: it is a base model that continues text. "
            "Use `paragone generate`, or pick an instruction-tuned model."
        )
    broken = _Breaker(tokenizer)
    cleaned = []
    if not isinstance(messages, list | tuple):
        raise UsageError(f"a conversation is a list of messages, not {type(messages).__name__}")
    for i, message in enumerate(messages):
        found: dict[str, Any] = dict(message) if isinstance(message, dict) else {}
        role, content, calls = found.get("role"), found.get("content"), found.get("tool_calls")
        if role not in ROLES or not (isinstance(content, str) or (content is None and calls)):
            raise UsageError(f"message {i + 1}: needs a role ({', '.join(ROLES)}) and a content text")
        more = {key: broken.value(found[key]) for key in MORE_FIELDS if found.get(key)}
        cleaned.append({"role": role, "content": broken.text(content or "")} | more)
    values = {
        "messages": cleaned,
        "add_generation_prompt": add_generation_prompt,
        "bos_token": tokenizer.special_text(tokenizer.bos_id) or "",
        "eos_token": tokenizer.special_text(tokenizer.eos_id) or "",
        "gap": tokenizer.gap,  # for the built-in formats
    }
    if tools:
        values["tools"] = broken.value(list(tools))
    return RENDERER.render(tokenizer.chat_template, values)


class _Breaker:
    """Puts MARK into what is spelled like a special token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        names = sorted(tokenizer.special, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, names))) if names else None
        self._heads = tuple({name[:n] for name in names for n in range(1, len(name))})
        self._tails = tuple({name[n:] for name in names for n in range(1, len(name))})

    def text(self, content: str) -> str:
        """Of a message."""
        return _with_closed_ends(self._inside(content), self._tails, self._heads)

    def _inside(self, content: str) -> str:
        content = content.replace(MARK, "")
        return self._spelled.sub(lambda m: MARK.join(("", *m[0], "")), content) if self._spelled else content

    def value(self, value: Any) -> Any:
        """All texts in a value of JSON. Keys, which a template puts between quotes, are looked up by it."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self._inside(str(key)): self.value(item) for key, item in value.items()}
        return [self.value(item) for item in value] if isinstance(value, list) else value


def _with_closed_ends(content: str, tails: tuple[str, ...], heads: tuple[str, ...]) -> str:
    """The content with a mark where its beginning or end, next to another text, could complete the spelling
    of a special token. Templates often trim, so white space stays outside."""
    bare = content.strip()
    if not bare:
        return content
    at = content.index(bare)
    before = MARK if bare.startswith(tails) or content.startswith(tails) else ""
    after = MARK if bare.endswith(heads) or content.endswith(heads) else ""
    return content[:at] + before + bare + after + content[at + len(bare) :]


def split_special(tokenizer: Tokenizer, rendered: str) -> list[int | str]:
    """Rendered text as control ids and plain runs, the marks taken out."""
    names = sorted(tokenizer.special, key=len, reverse=True)
    if not names:
        return [rendered.replace(MARK, "")]
    parts: list[int | str] = []
    for piece in re.split("(" + "|".join(map(re.escape, names)) + ")", rendered):
        if piece in tokenizer.special:
            parts.append(tokenizer.special[piece])
        elif piece:
            parts.append(piece.replace(MARK, ""))
    for at, part in enumerate(parts):
        before, after = (
            tokenizer.strips.get(part, (False, False)) if isinstance(part, int) else (False, False)
        )
        if before and at and isinstance(previous := parts[at - 1], str):
            parts[at - 1] = previous.rstrip()
        if after and at + 1 < len(parts) and isinstance(following := parts[at + 1], str):
            parts[at + 1] = following.lstrip()
    return [part for part in parts if part != ""]


class Renderer(LineProcess):
    """The process that renders templates."""

    def __init__(self) -> None:
        bounds = {
            "sequence": limits.TEMPLATE_SEQUENCE,
            "output": limits.TEMPLATE_OUTPUT_BYTES,
            "memory": limits.TEMPLATE_MEMORY_BYTES,
            "cpu_seconds": limits.TEMPLATE_PROCESS_SECONDS,
        }
        worker = str(Path(__file__).with_name("chat_worker.py"))
        first = b'{"template": "", "values": {}}\n'
        super().__init__([sys.executable, "-I", worker, json.dumps(bounds)], limits.TEMPLATE_SECONDS, first)

    def render(self, template: str, values: dict[str, Any]) -> str:
        """Renders within the limits of limits.py, or raises TemplateError or TemplateLimit."""
        if len(template) > limits.TEMPLATE_BYTES:
            raise TemplateLimit(f"chat template is longer than {limits.TEMPLATE_BYTES} bytes")
        request = json.dumps({"template": template, "values": values}).encode() + b"\n"
        if len(request) > limits.TEMPLATE_INPUT_BYTES:
            raise TemplateLimit(f"conversation is longer than {limits.TEMPLATE_INPUT_BYTES} bytes")
        try:
            answer = json.loads(self.ask(request))
        except (TookTooLong, ProcessEnded) as err:
            raise TemplateLimit(f"chat template {err}") from None
        if "text" in answer:
            return str(answer["text"])
        if answer.get("kind") == "limit":
            raise TemplateLimit(f"chat template went over its limits: {answer['error']}")
        raise TemplateError(f"chat template failed: {answer['error']}")


RENDERER = Renderer()
atexit.register(RENDERER.stop)
