"""From what a client asks to prompts in the engine's line."""

from collections.abc import Sequence
from dataclasses import dataclass

from paragone.serve.encoding import as_json, encode_messages, encode_prompts, tokenizer_of
from paragone.serve.errors import ApiError
from paragone.serve.grammar_check import Wanted, check_size, wanted
from paragone.serve.link import Stream
from paragone.serve.messages import params_to_wire
from paragone.serve.models import ServedModel
from paragone.serve.schemas import ChatRequest, ChosenTool, CompletionRequest, Sampling, Tool
from paragone.serve.settings import Settings, resolve
from paragone.serve.state import State
from paragone.serve.tool_formats import ToolFormat, forced_grammar
from paragone.text.tokenizer import Tokenizer


@dataclass
class Asked:
    """A request that the engine has."""

    model: ServedModel
    settings: Settings
    stream: Stream
    prompts: list[list[int]]
    tools: ToolFormat | None  # where calls may come
    tool_names: frozenset[str] = frozenset()


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
    prompts = await encode_prompts(model, request)
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
