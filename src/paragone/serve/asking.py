"""From what a client asks to prompts in the engine's line."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from paragone import limits
from paragone.checkpoint.jsonfile import parse_json
from paragone.errors import MalformedData, ParagoneError, TemplateError
from paragone.serve.errors import ApiError, error_of
from paragone.serve.grammar_check import Wanted, check_size, wanted
from paragone.serve.link import Stream
from paragone.serve.messages import params_to_wire
from paragone.serve.models import ServedModel
from paragone.serve.schemas import ChatMessage, ChatRequest, ChosenTool, CompletionRequest, Sampling, Tool
from paragone.serve.settings import Settings, resolve
from paragone.serve.state import State
from paragone.serve.tool_formats import ToolFormat, forced_grammar, with_tools
from paragone.text.chat import MARK, Message, encode_chat, render_chat
from paragone.text.tokenizer import Tokenizer

Made = TypeVar("Made")
CHARS_OF_A_TOKEN = 1_024  # more than any vocabulary has
INLINE_CHARS = 4_096  # of a text that is encoded on the event loop; longer ones go to a thread


@dataclass
class Asked:
    """A request that the engine has."""

    model: ServedModel
    settings: Settings
    stream: Stream
    prompts: list[list[int]]
    tools: ToolFormat | None  # where calls may come
    tool_names: frozenset[str] = frozenset()


def tokenizer_of(model: ServedModel) -> Tokenizer:
    """Of a model whose files have been read."""
    assert model.tokenizer is not None  # noqa: S101 -- Models.described has read it
    return model.tokenizer


async def ask_chat(state: State, request: ChatRequest, tenant: str) -> Asked:
    """Raises ApiError, before any work of the engine, where it cannot be answered."""
    model = await state.models.use(request.model)
    tools = tools_of(request)
    chosen = request.tool_choice
    if isinstance(chosen, ChosenTool) and all(t.function.name != chosen.function.name for t in tools):
        raise ApiError(
            400, "invalid_value", f"tool_choice: {chosen.function.name!r} is not in tools", "tool_choice"
        )
    if chosen == "required" and not tools:
        raise ApiError(400, "invalid_value", "tool_choice is required and there are no tools", "tool_choice")
    ids = await encode_messages(model, request.messages, tools)
    _check_length(ids, model, "messages")
    stops = tokenizer_of(model).chat_stop
    settings = resolve(request, model.defaults, len(ids), _room(model), stops)
    grammar = wanted(request)
    forced = tools if chosen == "required" else []
    if isinstance(chosen, ChosenTool):
        forced = [t for t in tools if t.function.name == chosen.function.name]
    if forced:
        if grammar is not None:
            message = "a tool call that has to come leaves no room for a format"
            raise ApiError(400, "invalid_value", message, grammar.param)
        check_size([t.function.parameters for t in forced], "tools")
        functions = [as_json(t)["function"] for t in forced]
        several = request.parallel_tool_calls is not False and chosen == "required"
        special = tokenizer_of(model).special
        grammar = Wanted("lark", forced_grammar(model.tools, functions, special, several=several), "tools")
    form = model.tools if tools else None
    asked = await _submit(state, request, model, [ids], settings, grammar, tenant, form, chat=True)
    asked.tool_names = frozenset(tool.function.name for tool in tools)
    return asked


def tools_of(request: ChatRequest) -> list[Tool]:
    """The tools that a model is told of."""
    return [] if request.tool_choice == "none" else request.tools or []


def prompts_of(request: CompletionRequest) -> int:
    """How many there are."""
    given = request.prompt
    several = isinstance(given, list) and given and not isinstance(given[0], int)
    return len(given) if several else 1


async def ask_completion(state: State, request: CompletionRequest, tenant: str) -> Asked:
    """Raises ApiError as ask_chat does. Several prompts are one request."""
    model = await state.models.use(request.model)
    prompts = await _encoded(model, request)
    for ids in prompts:
        _check_length(ids, model, "prompt")
    # Each prompt's answer is cut to its own room by the engine.
    settings = resolve(request, model.defaults, min(map(len, prompts)), _room(model))
    return await _submit(state, request, model, prompts, settings, wanted(request), tenant, None, chat=False)


async def _submit(
    state: State,
    request: Sampling,
    model: ServedModel,
    prompts: list[list[int]],
    settings: Settings,
    grammar: Wanted | None,
    tenant: str,
    form: ToolFormat | None,
    *,
    chat: bool,
) -> Asked:
    params = settings.params
    outside = [token for token in params.token_ids() if token >= model.vocab_size]
    if outside:
        message = f"token id {outside[0]} is outside the vocabulary of {model.vocab_size}"
        raise ApiError(400, "invalid_value", message, _field_of(request, outside[0]))
    tokenizer = tokenizer_of(model)
    text = None if grammar is None else await state.grammars.tried(grammar)
    stream = state.link.submit(
        model.name,
        params.n,
        prompts,
        None if grammar is None else grammar.param,
        params=params_to_wire(params),
        chat=chat,
        stop=tokenizer.chat_stop if chat else (),
        show_special=settings.show_special or (form is not None and _is_spelled(form, tokenizer)),
        grammar=text,
        priority=request.priority or 0,
        tenant=tenant,
    )
    return Asked(model, settings, stream, prompts, form)


def _is_spelled(form: ToolFormat, tokenizer: Tokenizer) -> bool:
    """Whether what opens or closes a call is a control token, which texts leave out otherwise."""
    return form.begin in tokenizer.special or form.end in tokenizer.special


def _field_of(request: Sampling, token: int) -> str:
    biases = request.logit_bias or {}
    return "logit_bias" if str(token) in biases else (
        "stop_token_ids" if token in (request.stop_token_ids or ()) else "allowed_token_ids"
    )  # fmt: skip


def _check_length(ids: Sequence[int], model: ServedModel, param: str) -> None:
    if not ids:
        raise ApiError(400, "invalid_value", "the prompt is empty: there is nothing to continue", param)
    if len(ids) >= model.context:
        message = (
            f"the prompt has {len(ids)} tokens and the context of {model.name} is {model.context}: "
            f"shorten it by {len(ids) - model.context + 1} tokens or more"
        )
        raise ApiError(400, "context_length_exceeded", message, param)
    if model.loaded is not None and len(ids) >= model.loaded.capacity:
        message = (
            f"the prompt has {len(ids)} tokens and the cache of {model.name} holds {model.loaded.capacity}"
        )
        raise ApiError(400, "context_length_exceeded", message, param)


def _room(model: ServedModel) -> int:
    """Tokens that a prompt and its answer may have together."""
    return model.context if model.loaded is None else min(model.context, model.loaded.capacity)


async def _encoded(model: ServedModel, request: CompletionRequest) -> list[list[int]]:
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
