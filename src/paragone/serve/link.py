"""The other end of the engine's process: has it forked, talks to it, kills it where it hangs, has another."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from paragone import limits
from paragone.engine.request import NOTHING_ALLOWED
from paragone.errors import MalformedData
from paragone.serve.errors import ApiError, api_error, engine_unavailable
from paragone.serve.logs import Log
from paragone.serve.messages import (
    TOO_COMPLEX,
    Abort,
    Aborted,
    Begun,
    Delta,
    Frames,
    FromEngine,
    Load,
    Loaded,
    LoadFailed,
    Refused,
    Step,
    Submit,
    ToEngine,
    Unload,
    frame,
)
from paragone.serve.process import ForkServer

CHECK_EVERY_S = 0.5


class Stream:
    """What comes of one or several prompts, in order, to the last answer's reason or an error. `places`
    says which prompt a request of the engine is, `grammar_param` the field that a grammar is from."""

    __slots__ = ("_items", "_waiter", "answers", "ended", "error", "grammar_param", "places")

    def __init__(self, answers: int, grammar_param: str | None) -> None:
        self.answers, self.grammar_param = answers, grammar_param
        self.places: dict[int, int] = {}
        self.ended = False
        self.error: ApiError | None = None
        self._items: deque[Delta] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, delta: Delta) -> None:
        """From the engine."""
        self._items.append(delta)
        if delta.reason is not None:
            self.answers -= 1
            self.ended = self.answers <= 0
        self._wake()

    def fail(self, error: ApiError) -> None:
        """Nothing more will come."""
        if not self.ended:
            self.error, self.ended = error, True
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[Delta]:
        """All that has come since, at least one; nothing at the end. Raises the error that ended it."""
        while not self._items:
            if self.error is not None:
                raise self.error
            if self.ended:
                return []
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        items = list(self._items)
        self._items.clear()
        return items


class EngineLink(asyncio.Protocol):
    """One engine's process. `on_loaded` hears of models, `on_step` of every step, `on_down` when the process
    has ended and `on_up` when there is a new one; `on_given_up` when it ended too often."""

    def __init__(self, log: Log, forks: ForkServer, step_seconds: float = limits.STEP_SECONDS) -> None:
        self.log, self.step_seconds = log, step_seconds
        self.on_loaded: Callable[[Loaded | LoadFailed], None] = lambda _: None
        self.on_step: Callable[[Step], None] = lambda _: None
        self.on_down: Callable[[], None] = lambda: None
        self.on_up: Callable[[], None] = lambda: None
        self.on_given_up: Callable[[], None] = lambda: None
        self.streams: dict[int, Stream] = {}
        self._ending: set[int] = set()  # requests that the engine was told to end, and did not say it has
        self.restarts = 0
        self.up = False  # there is a process; it may still be starting
        self.alive = False  # it has spoken
        self._forks = forks
        self._transport: asyncio.Transport | None = None
        self._frames = Frames(FromEngine)
        self._ends: deque[float] = deque()
        self._next = 0
        self._heard = time.monotonic()
        self._closing = False
        self._reaper = ThreadPoolExecutor(1, "reaper")  # never behind what strangers have asked for
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Starts the process and the watch over it."""
        await self._spawn()
        self._keep(self._watch())

    def _keep(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _spawn(self) -> None:
        channel = self._forks.fork()
        self._frames, self._heard = Frames(FromEngine), time.monotonic()
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=channel)
        self.up = True
        self.on_up()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # of a stream; uvloop has classes of its own

    def data_received(self, data: bytes) -> None:
        self._heard, self.alive = time.monotonic(), True
        try:
            for message in self._frames.feed(data):
                self._receive(message)
        except MalformedData as err:
            self.log.event("engine_message", level="error", error=str(err))
            self._hang_up()

    def _receive(self, message: Any) -> None:
        if isinstance(message, Step):
            for delta in message.deltas:
                stream = self.streams.get(delta.request)
                if stream is None:
                    continue
                if delta.reason == "error":
                    self._failed(stream, delta.error or "")
                    continue
                stream.put(delta)
                if stream.ended:
                    self._forget(stream)
            self.on_step(message)
        elif isinstance(message, Refused):
            stream = self.streams.get(message.request)
            if stream is not None:
                param = stream.grammar_param if message.kind == "GrammarTooComplex" else None
                self.abort(stream, api_error(message.kind, message.error, param))
        elif isinstance(message, Aborted):
            self._ending.discard(message.request)
        elif not isinstance(message, Begun):
            self.on_loaded(message)

    def _failed(self, stream: Stream, error: str) -> None:
        if error.startswith(TOO_COMPLEX):
            self.abort(stream, api_error("GrammarTooComplex", error, stream.grammar_param))
            return
        if error == NOTHING_ALLOWED:
            self.abort(stream, api_error("UsageError", error, stream.grammar_param or "allowed_token_ids"))
            return
        self.log.event("engine_error", level="error", error=error)
        self.abort(stream, api_error("", ""))

    def _forget(self, stream: Stream) -> list[int]:
        """Those of its requests that had not been forgotten."""
        return [number for number in stream.places if self.streams.pop(number, None) is not None]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's interface
        self._transport, self.up, self.alive = None, False, False
        failed, self.streams = set(self.streams.values()), {}
        self._ending.clear()
        for stream in failed:
            stream.fail(
                ApiError(500, "engine_error", "the engine's process ended; it is being started again")
            )
        if self._closing:
            return
        self.on_down()
        self._keep(self._restart(len(failed)))

    async def _end(self) -> int | None:
        return await asyncio.get_running_loop().run_in_executor(self._reaper, self._forks.end)

    async def _restart(self, lost: int) -> None:
        code = await self._end()
        now = time.monotonic()
        self._ends.append(now)
        while self._ends and now - self._ends[0] > limits.ENGINE_RESTART_WINDOW_S:
            self._ends.popleft()
        self.log.event("engine_ended", level="error", exit_code=code, lost_requests=lost)
        if len(self._ends) > limits.ENGINE_RESTARTS:
            self.on_given_up()
            return
        await asyncio.sleep(0.5 * (len(self._ends) - 1))
        if self._closing:
            return
        self.restarts += 1
        try:
            await self._spawn()
        except OSError as err:  # no memory, no processes
            self.log.event("engine_not_started", level="error", error=err.strerror)
            await asyncio.sleep(1.0)
            await self._restart(0)

    async def _watch(self) -> None:
        """Kills a process that says nothing though it has work, or was told that it has none any more."""
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            now = time.monotonic()
            if not self.streams and not self._ending:
                self._heard = now
            elif now - self._heard > self.step_seconds and self.up:
                self.log.event("engine_hangs", level="error", seconds=round(now - self._heard, 1))
                self._heard = now
                self._hang_up()

    def _hang_up(self) -> None:
        """Has the process killed: whoever waits for it is told at once."""
        if self._transport is not None:
            self._transport.abort()

    def _tell(self, message: ToEngine) -> None:
        if self._transport is not None:
            self._transport.write(frame(message))

    def load(self, message: Load) -> None:
        """Asks for a model; on_loaded hears of it."""
        self._tell(message)

    def unload(self, model: str) -> None:
        """Forgets a model."""
        self._tell(Unload(model))

    def submit(
        self,
        model: str,
        answers: int,
        prompts: Sequence[list[int]],
        grammar_param: str | None = None,
        **fields: Any,
    ) -> Stream:
        """Puts prompts in the engine's line, each for so many answers. Raises ApiError where there is no
        engine."""
        if not self.up:
            raise engine_unavailable()
        if not self.streams and not self._ending:
            self._heard = time.monotonic()
        stream = Stream(answers * len(prompts), grammar_param)
        for place, ids in enumerate(prompts):
            self._next += 1
            stream.places[self._next] = place
            self.streams[self._next] = stream
            self._tell(Submit(request=self._next, model=model, prompt_ids=ids, **fields))
        return stream

    def abort(self, stream: Stream, error: ApiError | None = None) -> None:
        """Ends a stream's requests now, for whoever still waits for it with an error."""
        for number in self._forget(stream):
            self._tell(Abort(number))
            self._ending.add(number)
        if error is not None:
            stream.fail(error)
        stream.ended = True

    async def close(self) -> None:
        """Ends the process, and the one that it is from."""
        self._closing, alive = True, self.alive
        for task in self._tasks:
            task.cancel()
        if self._transport is not None:
            self._transport.close()
        if alive:
            await self._end()
        self._forks.kill()
