"""Conversations to token ids, by the model's own chat template.

What the template writes may hold control tokens; what the messages say may not. Before rendering, special
tokens that are spelled inside a message are broken with a mark that no text contains; afterwards the
unbroken ones are the template's own.
"""

import atexit
import contextlib
import json
import os
import re
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from paragone import limits
from paragone.errors import BadConfiguration, TemplateError, TemplateLimit, UsageError
from paragone.text.tokenizer import Tokenizer

MARK = "\U0010fffe"  # a noncharacter: Unicode reserves it for use inside a program
ROLES = ("system", "user", "assistant", "tool")


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


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
    tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = True
) -> str:
    """The template's text, with special tokens that messages spell broken by MARK."""
    if tokenizer.chat_template is None:
        raise BadConfiguration(
            "this model has no chat template: it is a base model that continues text. "
            "Use `paragone generate`, or pick an instruction-tuned model."
        )
    names = sorted(tokenizer.special, key=len, reverse=True)
    spelled = re.compile("|".join(map(re.escape, names))) if names else None
    heads = tuple({name[:n] for name in names for n in range(1, len(name))})
    tails = tuple({name[n:] for name in names for n in range(1, len(name))})
    cleaned = []
    if not isinstance(messages, list | tuple):
        raise UsageError(f"a conversation is a list of messages, not {type(messages).__name__}")
    for i, message in enumerate(messages):
        found = message if isinstance(message, dict) else {}
        role, content = found.get("role"), found.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise UsageError(f"message {i + 1}: needs a role ({', '.join(ROLES)}) and a content text")
        content = content.replace(MARK, "")
        if spelled:
            content = spelled.sub(lambda m: MARK.join(("", *m[0], "")), content)
        cleaned.append({"role": role, "content": _with_closed_ends(content, tails, heads)})
    values = {
        "messages": cleaned,
        "add_generation_prompt": add_generation_prompt,
        "bos_token": tokenizer.special_text(tokenizer.bos_id) or "",
        "eos_token": tokenizer.special_text(tokenizer.eos_id) or "",
        "gap": tokenizer.gap,  # for the built-in formats
    }
    return RENDERER.render(tokenizer.chat_template, values)


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


class Renderer:
    """The process that renders templates: started when needed, killed when a template will not end."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self) -> subprocess.Popen[bytes]:
        """The running process. Starting it early hides its start-up behind other work."""
        if self._process is None or self._process.poll() is not None:
            bounds = {
                "sequence": limits.TEMPLATE_SEQUENCE,
                "output": limits.TEMPLATE_OUTPUT_BYTES,
                "memory": limits.TEMPLATE_MEMORY_BYTES,
                "cpu_seconds": limits.TEMPLATE_PROCESS_SECONDS,
            }
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(Path(__file__).with_name("chat_worker.py")), json.dumps(bounds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal is not for it
            )
        return self._process

    def stop(self) -> None:
        """Kills the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._process.wait()
            self._process = None

    def render(self, template: str, values: dict[str, Any]) -> str:
        """Renders within the limits of limits.py, or raises TemplateError or TemplateLimit."""
        if len(template) > limits.TEMPLATE_BYTES:
            raise TemplateLimit(f"chat template is longer than {limits.TEMPLATE_BYTES} bytes")
        request = json.dumps({"template": template, "values": values}).encode() + b"\n"
        if len(request) > limits.TEMPLATE_INPUT_BYTES:
            raise TemplateLimit(f"conversation is longer than {limits.TEMPLATE_INPUT_BYTES} bytes")
        with self._lock:
            try:
                answer = self._exchange(request)
            except BaseException:
                self.stop()  # an answer that was not read must not become the next one
                raise
        if "text" in answer:
            return str(answer["text"])
        if answer.get("kind") == "limit":
            raise TemplateLimit(f"chat template went over its limits: {answer['error']}")
        raise TemplateError(f"chat template failed: {answer['error']}")

    def _exchange(self, request: bytes) -> dict[str, Any]:
        process = self.start()
        assert process.stdin  # noqa: S101 -- opened as a pipe above
        assert process.stdout  # noqa: S101
        deadline = time.monotonic() + limits.TEMPLATE_SECONDS
        reader, writer = process.stdout.fileno(), process.stdin.fileno()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        answer = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(reader, selectors.EVENT_READ)
            selector.register(writer, selectors.EVENT_WRITE)
            while not answer.endswith(b"\n"):
                ready = selector.select(max(deadline - time.monotonic(), 0))
                if not ready:
                    self.stop()
                    raise TemplateLimit(f"chat template took more than {limits.TEMPLATE_SECONDS:g} seconds")
                try:
                    for key, _ in ready:
                        if key.fd == writer:
                            request = request[os.write(writer, request[: 1 << 16]) :]
                            if not request:
                                selector.unregister(writer)
                        else:
                            data = os.read(reader, 1 << 20)
                            if not data:
                                raise BrokenPipeError
                            answer += data
                except OSError:
                    self.stop()
                    raise TemplateLimit("chat template ended its process: out of memory?") from None
        return json.loads(answer)  # type: ignore[no-any-return]


RENDERER = Renderer()
atexit.register(RENDERER.stop)
