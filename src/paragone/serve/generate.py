"""/v1/chat/completions and /v1/completions: from the body to the last byte of the answer."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from paragone.serve.answers import Answers, ChatChoice, Json, TextChoice
from paragone.serve.asking import Asked, ask_chat, ask_completion, prompts_of
from paragone.serve.call import Call
from paragone.serve.errors import ApiError
from paragone.serve.messages import Delta, Logprob
from paragone.serve.metrics import RequestTimes
from paragone.serve.schemas import ChatRequest, CompletionRequest, Sampling
from paragone.serve.state import State

Pieces = Callable[[Delta], list[Json]]
MANY_SCORES = 256  # log-probabilities of a prompt that are written out beside the event loop
DONE = b"data: [DONE]\n\n"
SSE = "text/event-stream; charset=utf-8"
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def chat(state: State, call: Call) -> None:
    """POST /v1/chat/completions."""
    request = await _body(state, call, ChatRequest)
    limiter, more = state.limiter, (request.n or 1) - 1
    with limiter.admitted(call.key), limiter.places(more, "n"), state.models.kept(request.model):
        asked = await _in_time(state, call, request, ask_chat(state, request, call.tenant))
        answers = Answers(asked, "chatcmpl")
        choices = [ChatChoice(answers, index) for index in range(answers.n)]
        kinds = "chat.completion", "chat.completion.chunk"
        await _answer(state, call, request, answers, lambda d: choices[d.choice].pieces(d), choices, kinds)


async def completion(state: State, call: Call) -> None:
    """POST /v1/completions."""
    request = await _body(state, call, CompletionRequest)
    more = prompts_of(request) * (request.n or 1) - 1
    limiter = state.limiter
    with limiter.admitted(call.key), limiter.places(more, "prompt"), state.models.kept(request.model):
        asked = await _in_time(state, call, request, ask_completion(state, request, call.tenant))
        answers = Answers(asked, "cmpl", shown=request.max_tokens != 0)
        count = answers.n * len(asked.prompts)
        choices = [TextChoice(answers, index, echo=bool(request.echo)) for index in range(count)]
        scores: dict[int, tuple[Logprob, ...]] = {}

        def pieces(delta: Delta) -> list[Json]:
            if delta.prompt_logprobs:
                scores[delta.request] = delta.prompt_logprobs
            return choices[answers.index(delta)].pieces(delta, scores.get(delta.request, ()))

        kinds = "text_completion", "text_completion"
        await _answer(state, call, request, answers, pieces, choices, kinds)


async def _body(state: State, call: Call, kind: type[Any]) -> Any:
    """The body; where there is no place for the request, it is not even read."""
    state.limiter.check(call.key)
    return await call.json(kind)


def _seconds(state: State, call: Call, request: Sampling) -> tuple[float, ApiError]:
    """What is left of a request's time, and the error for when it is over."""
    most = min(request.timeout or state.request_seconds, state.request_seconds)
    late = ApiError(504, "timeout", f"the answer was not complete after {most:g} seconds")
    return call.begin + most - time.perf_counter(), late


def _gone() -> ApiError:
    return ApiError(499, "client_closed", "the client has gone")


async def _in_time(state: State, call: Call, request: Sampling, asking: Coroutine[Any, Any, Asked]) -> Asked:
    """While it waits for a model, a template or a grammar, too, the client may leave and the time run out."""
    left, late = _seconds(state, call, request)
    work, watch = asyncio.ensure_future(asking), asyncio.ensure_future(call.gone())
    try:
        done, _ = await asyncio.wait({work, watch}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if work in done:
            return work.result()
        raise _gone() if watch in done else late
    finally:
        watch.cancel()
        work.cancel()
        work.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody waits for it


@contextmanager
def _watched(state: State, call: Call, request: Sampling, asked: Asked) -> Iterator[None]:
    """While the answer comes: the client may leave, and the time may run out."""
    stream, link = asked.stream, state.link
    left, late = _seconds(state, call, request)
    timer = asyncio.get_running_loop().call_later(left, link.abort, stream, late)
    watch = asyncio.ensure_future(call.gone())
    watch.add_done_callback(lambda task: None if task.cancelled() else link.abort(stream, _gone()))
    try:
        yield
    finally:
        timer.cancel()
        watch.cancel()
        link.abort(stream)  # nothing of it goes on, however this ended


async def _answer(
    state: State,
    call: Call,
    request: Sampling,
    answers: Answers,
    pieces: Pieces,
    choices: list[Any],
    kinds: tuple[str, str],
) -> None:
    asked = answers.asked
    times = RequestTimes(state.metrics, asked.model.name, call.begin)
    call.noted |= {"model": asked.model.name, "prompt_tokens": answers.prompt_tokens}
    try:
        most = answers.prompt_tokens + answers.most_tokens
        with _watched(state, call, request, asked), state.limiter.reserved(call.key, most):
            if request.stream:
                await _stream(call, request, answers, pieces, times, kinds[1])
            else:
                await _whole(call, request, answers, pieces, choices, times, kinds[0])
    finally:
        used = answers.prompt_tokens, answers.completion_tokens
        state.limiter.count(call.key, *used)
        times.done(*used, answers.reasons)
        call.noted |= {"completion_tokens": answers.completion_tokens}
        if times.ttft_s is not None:
            call.noted |= {"ttft_ms": round(1e3 * times.ttft_s, 1)}


async def _made(pieces: Pieces, delta: Delta) -> list[Json]:
    """What a delta makes; much of it beside the event loop."""
    if len(delta.prompt_logprobs) > MANY_SCORES:
        return await asyncio.to_thread(pieces, delta)
    return pieces(delta)


async def _whole(
    call: Call,
    request: Sampling,
    answers: Answers,
    pieces: Pieces,
    choices: list[Any],
    times: RequestTimes,
    kind: str,
) -> None:
    while deltas := await answers.asked.stream.take():
        for delta in deltas:
            answers.count(delta)
            times.tokens(answers.index(delta), len(delta.token_ids))
            await _made(pieces, delta)
    body = answers.head(kind) | {"choices": [choice.whole() for choice in choices], "usage": answers.usage}
    if request.return_settings:
        body["settings"] = answers.settings
    await call.reply(200, msgspec.json.encode(body))


async def _stream(
    call: Call, request: Sampling, answers: Answers, pieces: Pieces, times: RequestTimes, kind: str
) -> None:
    """Server-sent events. The head goes out with the first token, so that what fails before has a status."""
    options = request.stream_options
    usage = options is not None and bool(options.include_usage)
    always = usage and options is not None and bool(options.continuous_usage_stats)
    encode = msgspec.json.Encoder().encode
    # Encoded once: most of a chunk is the same in all of them.
    head = b"data: " + encode(answers.head(kind))[:-1]
    try:
        while deltas := await answers.asked.stream.take():
            data = bytearray()
            for delta in deltas:
                answers.count(delta)
                times.tokens(answers.index(delta), len(delta.token_ids))
                for choice in await _made(pieces, delta):
                    data += head + b',"choices":[' + encode(choice) + b"]"
                    if usage:
                        data += b',"usage":' + encode(answers.usage if always else None)
                    data += b"}\n\n"
            if data:
                if not call.started:
                    await call.start(200, SSE, STREAM_HEADERS)
                await call.send(bytes(data))
    except ApiError as err:
        if not call.started or err.status == 499:
            raise
        call.status = err.status  # for the log: the client has been told 200 already
        with suppress(Exception):
            await call.send(b"data: " + encode(err.body) + b"\n\n", more=False)
        return
    data = bytearray()
    if usage or request.return_settings:
        last: Json = {"usage": answers.usage} if usage else {}
        last |= {"settings": answers.settings} if request.return_settings else {}
        data += head + b',"choices":[],' + encode(last)[1:] + b"\n\n"
    await call.send(bytes(data) + DONE, more=False)
