"""An engine for coroutines: one thread steps it, any number of tasks iterate over their answers.

async with AsyncEngine(engine) as front:
    async for chunk in front.generate(request):
        print(chunk.text)
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Self

from paragone.engine.engine import Engine
from paragone.engine.request import Chunk, Request
from paragone.errors import ParagoneError

Box = Callable[[Chunk], None]


class AsyncEngine:
    """Owns an engine and the thread that steps it. What is asked of the engine is done between its steps."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._asked: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._boxes: dict[int, Box] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    async def generate(
        self, request: Request, *, priority: int = 0, tenant: str = ""
    ) -> AsyncIterator[Chunk]:
        """The chunks of a request, whose index is its number; each answer's last brings its completion.
        Leaving the loop ends the request. Raises, before any work, where it can never run."""
        loop, chunks = asyncio.get_running_loop(), asyncio.Queue[Chunk]()

        def deliver(chunk: Chunk) -> None:
            with suppress(RuntimeError):  # the loop has been closed: nobody listens
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)

        def add() -> int:
            number = self.engine.add(request, priority=priority, tenant=tenant)
            self._boxes[number] = deliver
            return number

        number = await self._ask(add)
        going_on = request.params.n
        try:
            while going_on:
                chunk = await chunks.get()
                going_on -= chunk.finish_reason is not None
                yield chunk
        finally:
            if going_on:
                self._tell(lambda: self._abort(number))
            else:
                self._tell(lambda: self._boxes.pop(number, None))

    def close(self) -> None:
        """Ends all requests and the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    async def _ask(self, work: Callable[[], int]) -> int:
        """Has a request added between two steps; its number. Where nobody waits any more, it is ended."""
        future = self._tell(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.cancel():
                future.add_done_callback(self._undo)
            raise

    def _undo(self, future: "Future[int]") -> None:
        if not future.cancelled() and future.exception() is None:
            number = future.result()
            self._tell(lambda: self._abort(number))

    def _tell(self, work: Callable[[], Any]) -> "Future[Any]":
        future: Future[Any] = Future()
        with self._wake:
            if self._closing:
                future.set_exception(ParagoneError("the engine is closed"))
                return future
            self._asked.append((work, future))
            self._wake.notify()
        return future

    def _abort(self, number: int) -> None:
        self._boxes.pop(number, None)
        self.engine.abort(number)

    def _loop(self) -> None:
        try:
            self._run()
        finally:  # whatever happened, nobody waits for ever
            with self._wake:
                self._closing = True
            for _, future in self._asked:
                if future.set_running_or_notify_cancel():
                    future.set_exception(ParagoneError("the engine is closed"))
            for number, box in list(self._boxes.items()):
                for chunk in self.engine.abort(number):
                    box(chunk)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._asked or self._closing or self.engine.has_work()):
                    self._wake.wait()
                if self._closing:
                    return
                asked, self._asked = self._asked, deque()
            for work, future in asked:
                self._do(work, future)
            for chunk in self.engine.step():
                box = self._boxes.get(chunk.index)
                if box is not None:
                    box(chunk)

    @staticmethod
    def _do(work: Callable[[], Any], future: "Future[Any]") -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except Exception as err:
            future.set_exception(err)
