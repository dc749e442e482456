"""Several users of one engine in one process: each iterates over its own answers, and whoever waits for the
next piece steps the engine for all."""

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from paragone.engine.answer import check_request
from paragone.engine.engine import Engine
from paragone.engine.request import Chunk, Completion, Request
from paragone.errors import ParagoneError


class Front:
    """An engine, made when the first request comes, and a box for the chunks of each request."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        self._make = make
        self._engine: Engine | None = None
        self._boxes: dict[int, deque[Chunk]] = {}
        self._lock = threading.RLock()
        self._next = 0  # numbers go on where the engine before has left off: old ones name nothing new
        self._stepping = False
        self._late: list[int] = []  # aborts that came out of a step itself

    @property
    def engine(self) -> Engine:
        """The engine, made now if there is none."""
        with self._lock:
            if self._engine is None:
                self._engine = self._make()
                self._engine.next_number = self._next
            return self._engine

    def add(self, requests: Sequence[Request]) -> list[tuple[int, list[Completion]]]:
        """Puts all in line, or none where one is refused: each one's number, and its answers as they grow."""
        with self._lock:
            added: list[tuple[int, list[Completion]]] = []
            try:
                for request in requests:
                    number = self.engine.add(request)
                    added.append((number, self.engine.completions(number)))
            except BaseException:
                self.abort([number for number, _ in added])
                raise
            self._boxes.update((number, deque()) for number, _ in added)
            return added

    def take(self, numbers: Sequence[int]) -> list[Chunk]:
        """The next chunks of these requests, after as many steps as it takes; none where they are lost."""
        with self._lock:
            while not (chunks := [chunk for number in numbers for chunk in self._empty(number)]):
                if not all(number in self._boxes for number in numbers):
                    break
                with interrupts_waiting():
                    self._step()
            return chunks

    def _step(self) -> None:
        engine, self._stepping = self.engine, True
        try:
            chunks = engine.step()
        except BaseException:  # a second Ctrl-C: nobody knows how far the step has come
            self._engine, self._next = None, engine.next_number
            self._boxes.clear()
            raise
        finally:
            self._stepping = False
        for chunk in chunks:
            if chunk.index in self._boxes:
                self._boxes[chunk.index].append(chunk)
        late, self._late = self._late, []
        self.abort(late)

    def _empty(self, number: int) -> Iterator[Chunk]:
        box = self._boxes.get(number)
        while box:
            yield box.popleft()

    def abort(self, numbers: Sequence[int]) -> list[Chunk]:
        """Ends requests; their last chunks, and those that nobody has taken yet. What the garbage collector
        ends in the middle of a step waits for its end."""
        with self._lock:
            if self._stepping:
                self._late += numbers
                return []
            engine, chunks = self._engine, list[Chunk]()
            for number in numbers:
                chunks += self._boxes.pop(number, ())
                chunks += [] if engine is None else engine.abort(number)
            return chunks


@contextmanager
def interrupts_waiting() -> Iterator[None]:
    """A Ctrl-C ends the step first, so that the engine can go on; a second one does not wait."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    noted = False

    def note(_signal: int, _frame: FrameType | None) -> None:
        nonlocal noted
        if noted:
            raise KeyboardInterrupt
        noted = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if noted:
        raise KeyboardInterrupt


class Generation:
    """Requests on their way. Iterating yields chunks, which name the prompt by its place; `cancel` ends what
    is not finished. `completions` hold all answers in the order of the prompts, and of one prompt in the
    order of their choices, and grow while they come."""

    def __init__(self, front: Front, requests: Sequence[Request]) -> None:
        """Raises before any work where a prompt does not fit."""
        self._front, self._requests = front, list(requests)
        for request in self._requests:
            check_request(request, front.engine.decoder.spec)
        self.completions: list[Completion] = []
        self._places: dict[int, int] = {}
        self._open: dict[int, int] = {}  # answers that have not ended, by request
        self._cancelled = False

    def cancel(self) -> None:
        """Ends the generation: answers that are not finished get the reason "cancelled"."""
        self._cancelled = True

    def check(self) -> None:
        """Raises ParagoneError where an answer has failed."""
        for completion in self.completions:
            if completion.finish_reason == "error":
                raise ParagoneError(f"the answer broke off: {completion.error}")

    def __iter__(self) -> Iterator[Chunk]:
        for place, (number, completions) in enumerate(self._front.add(self._requests)):
            self._places[number] = place
            self._open[number] = len(completions)
            self.completions += completions
        try:
            while self._open:
                numbers = list(self._open)
                chunks = self._front.abort(numbers) if self._cancelled else self._front.take(numbers)
                if not chunks:
                    return
                for chunk in chunks:
                    self._count(chunk)
                    yield replace(chunk, index=self._places[chunk.index])
        finally:  # also where nobody wants the rest
            self._front.abort(list(self._places))
            self._open.clear()

    def _count(self, chunk: Chunk) -> None:
        if chunk.finish_reason is not None and chunk.index in self._open:
            self._open[chunk.index] -= 1
            if not self._open[chunk.index]:
                del self._open[chunk.index]
