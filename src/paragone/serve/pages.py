"""Everything that is not generation: models, tokens, templates, health, the page."""

import asyncio
from importlib.resources import files
from typing import Any

import msgspec

from paragone import __version__
from paragone.serve.answers import token_text
from paragone.serve.call import Call
from paragone.serve.encoding import encode_messages, encode_text, render_messages, tokenizer_of
from paragone.serve.errors import ApiError
from paragone.serve.metrics import resident_bytes
from paragone.serve.models import ServedModel
from paragone.serve.openapi import document
from paragone.serve.schemas import DetokenizeRequest, RenderRequest, TokenizeRequest
from paragone.serve.state import State

# No other origin's code, frames or addresses: an answer shown on the page can reach nothing.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


async def _json(call: Call, body: Any, status: int = 200) -> None:
    await call.reply(status, msgspec.json.encode(body))


async def health(state: State, call: Call) -> None:
    """Whether the engine lives."""
    alive = state.link.alive
    await _json(call, {"status": "ok" if alive else "engine down"}, 200 if alive else 503)


async def ready(state: State, call: Call) -> None:
    """Whether a request would be taken now."""
    await _json(call, {"status": "ready" if state.ready else "not ready"}, 200 if state.ready else 503)


async def version(state: State, call: Call) -> None:  # noqa: ARG001 -- every handler gets it
    """Of Paragone."""
    await _json(call, {"version": __version__})


async def models(state: State, call: Call) -> None:
    """What may be asked for."""
    described = []
    for model in state.models:
        try:
            described.append((await state.models.described(model.name)).described())
        except ApiError:  # its files cannot be read: the others are there
            described.append(model.described())
    await _json(call, {"object": "list", "data": described})


async def model(state: State, call: Call) -> None:
    """One of them."""
    name = call.path.removeprefix("/v1/models/")
    await _json(call, (await state.models.described(name)).described())


async def metrics(state: State, call: Call) -> None:
    """For Prometheus."""
    state.metrics.inside.set(state.limiter.inside)
    state.metrics.restarts.set(state.link.restarts)
    await call.reply(200, state.metrics.text(), "text/plain; version=0.0.4; charset=utf-8")


async def machine(state: State, call: Call) -> None:
    """The server's and the machine's state, for the page and `paragone top`."""
    from paragone.engine.resources import available_memory_bytes

    rows = []
    for served in state.models:
        step = state.metrics.states.get(served.name)
        row: dict[str, Any] = {"model": served.name, "loaded": served.loaded is not None}
        if step is not None and served.loaded is not None:
            row |= {
                "running": step.running,
                "waiting": step.waiting,
                "blocks_used": step.blocks_used,
                "blocks": step.blocks,
                "preemptions": step.preemptions,
                "step_ms": round(1e3 * step.step_s, 2),
                "weight_bytes": served.loaded.weight_bytes,
                "cache_bytes": served.loaded.cache_bytes,
            }
        rows.append(row)
    engine = next((s.resident_bytes for s in state.metrics.states.values()), 0)
    body = {
        "models": rows,
        "requests_inside": state.limiter.inside,
        "requests_at_most": state.limiter.most,
        "engine_up": state.link.alive,
        "engine_restarts": state.link.restarts,
        "draining": state.limiter.draining,
        "memory_bytes": {"http": resident_bytes(), "engine": engine, "available": available_memory_bytes()},
    }
    await _json(call, body)


async def tokenize(state: State, call: Call) -> None:
    """Token ids of a text or a conversation."""
    state.limiter.check(call.key)
    request = await call.json(TokenizeRequest)
    if (request.prompt is None) == (request.messages is None):
        raise ApiError(400, "invalid_value", "give either prompt or messages", "prompt")
    with state.limiter.admitted(call.key):
        found = await state.models.described(request.model)
        if request.messages is not None:
            ids = await encode_messages(found, request.messages, [])
        else:
            text = request.prompt or ""
            ids = await encode_text(found, text, prefix=request.add_special_tokens, param="prompt")
        body: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": found.context}
        if request.return_token_strs:
            body["token_strs"] = await asyncio.to_thread(_strings, found, ids)
        await _json(call, body)


def _strings(model: ServedModel, ids: list[int]) -> list[str]:
    return [token_text(tokenizer_of(model), i)[0] for i in ids]


async def detokenize(state: State, call: Call) -> None:
    """The text of token ids."""
    state.limiter.check(call.key)
    request = await call.json(DetokenizeRequest)
    with state.limiter.admitted(call.key):
        found = await state.models.described(request.model)
        await _json(call, {"prompt": await asyncio.to_thread(_text, found, request.tokens)})


def _text(model: ServedModel, ids: list[int]) -> str:
    tokenizer = tokenizer_of(model)
    unknown = next((i for i in ids if not tokenizer.knows(i)), None)
    if unknown is not None:
        message = f"token id {unknown} is not in the vocabulary of {model.name}"
        raise ApiError(400, "invalid_value", message, "tokens")
    return tokenizer.decode(ids, skip_special=False)


async def render(state: State, call: Call) -> None:
    """What the model would see of a conversation, exactly."""
    state.limiter.check(call.key)
    request = await call.json(RenderRequest)
    with state.limiter.admitted(call.key):
        found = await state.models.described(request.model)
        text, ids = await render_messages(found, request.messages, request.tools or [])
        strings = await asyncio.to_thread(_strings, found, ids)
        await _json(call, {"prompt": text, "token_ids": ids, "token_strs": strings, "count": len(ids)})


async def openapi(state: State, call: Call) -> None:
    """This API's own document."""
    await call.reply(200, document(tuple(m.name for m in state.models), keys=state.keys is not None))


async def page(state: State, call: Call) -> None:  # noqa: ARG001
    """The page and its two files."""
    name = call.path.removeprefix("/") or "index.html"
    kind = {"html": "text/html", "css": "text/css", "js": "text/javascript"}[name.rpartition(".")[2]]
    data = files("paragone.serve").joinpath("page", name).read_bytes()
    await call.reply(200, data, f"{kind}; charset=utf-8", PAGE_HEADERS)
