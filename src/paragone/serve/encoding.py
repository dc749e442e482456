"""Texts and conversations to token ids, off the event loop where they are long."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from paragone import limits
from paragone.checkpoint.jsonfile import parse_json
from paragone.errors import MalformedData, ParagoneError, TemplateError
from paragone.serve.errors import ApiError, error_of
from paragone.serve.models import ServedModel
from paragone.serve.schemas import ChatMessage, CompletionRequest, Tool
from paragone.serve.tool_formats import with_tools
from paragone.text.chat import MARK, Message, encode_chat, render_chat
from paragone.text.tokenizer import Tokenizer

Made = TypeVar("Made")
CHARS_OF_A_TOKEN = 1_024  # more than any vocabulary has
INLINE_CHARS = 4_096  # of a text that is encoded on the event loop; longer ones go to a thread


def tokenizer_of(model: ServedModel) -> Tokenizer:
    """Of a model whose files have been read."""
    assert model.tokenizer is not None  # noqa: S101 -- Models.described has read it
    return model.tokenizer


async def encode_prompts(model: ServedModel, request: CompletionRequest) -> list[list[int]]:
    """Ids of each prompt, which may be ids already."""
    given = request.prompt
    size = sum(len(item) if isinstance(item, str | list) else 1 for item in given)
    if size <= INLINE_CHARS:
        return _prompts(model, given)
    return await asyncio.to_thread(_prompts, model, given)


def _prompts(model: ServedModel, given: Any) -> list[list[int]]:
    listed: list[Any] = [given] if isinstance(given, str) else given
    if all(isinstance(item, int) for item in listed):
        listed = [listed]  # the ids of one prompt
    elif any(isinstance(item, int) for item in listed):
        raise ApiError(400, "invalid_value", "prompt mixes token ids with texts or lists", "prompt")
    if len(listed) > limits.PROMPTS:
        raise ApiError(400, "invalid_value", f"{len(listed)} prompts, at most {limits.PROMPTS}", "prompt")
    prompts = []
    for item in listed:
        ids = _encode(model, item, prefix=True, param="prompt") if isinstance(item, str) else item
        if any(i >= model.vocab_size for i in ids):
            message = f"token id {max(ids)} is outside the vocabulary of {model.vocab_size}"
            raise ApiError(400, "invalid_value", message, "prompt")
        prompts.append(list(ids))
    return prompts


async def encode_text(model: ServedModel, text: str, *, prefix: bool, param: str) -> list[int]:
    """Ids of a text. One that can never fit is refused before it is encoded."""
    if len(text) <= INLINE_CHARS:
        return _encode(model, text, prefix=prefix, param=param)
    return await asyncio.to_thread(_encode, model, text, prefix=prefix, param=param)


def _encode(model: ServedModel, text: str, *, prefix: bool, param: str) -> list[int]:
    _check_size(len(text), model, param)
    try:
        return tokenizer_of(model).encode(text, prefix=prefix)
    except MalformedData as err:
        raise ApiError(400, "invalid_value", str(err), param) from None


def _check_size(size: int, model: ServedModel, param: str) -> None:
    """Before anything is made of it."""
    if size > model.context * CHARS_OF_A_TOKEN:
        message = f"{param} has {size:,} characters, which the context of {model.context} tokens cannot hold"
        raise ApiError(400, "context_length_exceeded", message, param)


async def encode_messages(
    model: ServedModel, messages: Sequence[ChatMessage], tools: Sequence[Tool]
) -> list[int]:
    """Ids of a conversation by the model's own template."""
    return await asyncio.to_thread(_encode_messages, model, messages, tools)


def _encode_messages(model: ServedModel, messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> list[int]:
    return _by_template(model, messages, tools, encode_chat)


async def render_messages(
    model: ServedModel, messages: Sequence[ChatMessage], tools: Sequence[Tool]
) -> tuple[str, list[int]]:
    """The template's text, exactly as the model sees it, and its ids."""
    return await asyncio.to_thread(_render_messages, model, messages, tools)


def _render_messages(
    model: ServedModel, messages: Sequence[ChatMessage], tools: Sequence[Tool]
) -> tuple[str, list[int]]:
    text = _by_template(model, messages, tools, render_chat)
    return text.replace(MARK, ""), _encode_messages(model, messages, tools)


def _by_template(
    model: ServedModel, messages: Sequence[ChatMessage], tools: Sequence[Tool], made: Callable[..., Made]
) -> Made:
    """What a function makes of a conversation by the model's template."""
    plain = [_message(message, place) for place, message in enumerate(messages)]
    _check_size(sum(len(m.get("content") or "") for m in plain), model, "messages")
    given = [as_json(tool) for tool in tools]
    has_tools = bool(given) or any(m["role"] == "tool" or m.get("tool_calls") for m in plain)
    known = given if given and not model.tools.told else None

    def by(*, system: bool) -> Made:
        told = with_tools(model.tools, plain, given, system=system) if has_tools else plain
        return made(tokenizer_of(model), told, tools=known)

    try:
        try:
            return by(system=True)
        except TemplateError:
            if not given or not model.tools.told:
                raise
            return by(system=False)  # not every template has a system message
    except ParagoneError as err:
        raise error_of(err, "messages") from None


def _message(message: ChatMessage, place: int) -> Message:
    """A message in the words of templates."""
    content = message.content
    if isinstance(content, list):
        content = "".join(part.text for part in content)
    role = "system" if message.role == "developer" else message.role
    plain: Message = {"role": role, "content": content}
    if message.name:
        plain["name"] = message.name
    if message.tool_call_id:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        calls = []
        for call in message.tool_calls:
            try:
                arguments = parse_json((call.function.arguments or "{}").encode())
            except (ValueError, RecursionError):
                where = f"messages[{place}].tool_calls"
                raise ApiError(400, "invalid_value", f"{where}: arguments are no JSON", where) from None
            function = {"name": call.function.name, "arguments": arguments}
            calls.append({"id": call.id, "type": "function", "function": function})
        plain["tool_calls"] = calls
    if content is None and not message.tool_calls:
        if message.role != "assistant":
            where = f"messages[{place}].content"
            raise ApiError(400, "missing_field", f"{where} is missing", where)
        plain["content"] = ""
    return plain


def as_json(tool: Tool) -> dict[str, Any]:
    """A tool as a client sent it."""
    function: dict[str, Any] = {"name": tool.function.name}
    if tool.function.description is not None:
        function["description"] = tool.function.description
    if tool.function.parameters is not None:
        function["parameters"] = tool.function.parameters
    return {"type": "function", "function": function}
