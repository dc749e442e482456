"""The engine's process: takes requests from a socket, steps the engines of all loaded models in turn.

fork_server.py makes it. Nothing else runs in its main thread, so that a step is never late: a thread reads
the socket and another writes to it, others load models and compile grammars. Where the other end of the
socket is gone, the process ends.
"""

import contextlib
import ctypes
import gc
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from paragone import limits
from paragone.engine.config import EngineConfig
from paragone.engine.engine import Engine
from paragone.engine.load import load_model
from paragone.engine.request import Request
from paragone.errors import MalformedData, message_of
from paragone.serve.gather import Gathered, interval
from paragone.serve.grammar import Grammars
from paragone.serve.messages import (
    Abort,
    Aborted,
    Begun,
    Delta,
    Frames,
    Load,
    Loaded,
    LoadFailed,
    Logprob,
    Refused,
    State,
    Step,
    Submit,
    ToEngine,
    Unload,
    frame,
    logprob_of,
    params_from_wire,
)

RESIDENT_EVERY_S = 0.5
ALIVE_EVERY_S = 0.5  # while a prompt is read there is nothing else to say
GONE = object()  # in the line of messages: there is nobody at the other end


@dataclass
class Running:
    """A loaded model with its engine; its requests by their number in the engine."""

    engine: Engine
    grammars: Grammars
    requests: dict[int, int] = field(default_factory=dict)
    left: dict[int, int] = field(default_factory=dict)  # answers that have not ended, by engine's number
    scored: set[int] = field(default_factory=set)  # whose prompts' log-probabilities are still to be sent
    gathered: Gathered = field(default_factory=Gathered)
    steps: int = 0


class Worker:
    """The main loop. What other threads have done comes back through the line of messages, too."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._line: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._said: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._loader, self._compiler = ThreadPoolExecutor(1, "loader"), ThreadPoolExecutor(1, "compiler")
        self._models: dict[str, Running] = {}
        self._numbers: dict[int, tuple[str, int]] = {}  # model and engine's number, by request
        self._compiling: dict[int, Future[Any]] = {}
        self._resident = 0, 0.0
        self._told = 0.0  # when something was last said

    def run(self) -> None:
        """Until the other end is gone."""
        self._send(Begun())
        for name, work in (("writer", self._write), ("reader", self._read)):
            threading.Thread(target=work, name=name, daemon=True).start()
        while True:
            busy = [name for name, model in self._models.items() if model.engine.has_work()]
            message = self._next(wait=not busy)
            while message is not None:
                if message is GONE:
                    return
                self._handle(message)
                message = self._next(wait=False)
            for name in busy:
                if name in self._models:
                    self._step(name, self._models[name])
                    if len(busy) > 1:  # it is another's turn
                        self._flush(name)

    def _next(self, *, wait: bool) -> Any:
        try:
            return self._line.get(wait)
        except queue.Empty:
            return None

    def _read(self) -> None:
        frames = Frames(ToEngine)
        try:
            while data := self._channel.recv(1 << 20):
                for message in frames.feed(data):
                    self._line.put(message)
        except (OSError, MalformedData) as err:
            sys.stderr.write(f"engine: {err}\n")
        self._line.put(GONE)

    def _send(self, message: Any) -> None:
        """While the next step computes: who hears something runs at once, on a processor that computes here.
        In a step the others take its work over; between two steps they would wait."""
        self._told = time.monotonic()
        self._said.put(message)

    def _write(self) -> None:
        try:
            while True:
                self._channel.sendall(frame(self._said.get()))
        except OSError:  # nobody is there any more, as the reader hears, too
            return
        except Exception as err:
            self._line.put(err)

    def _handle(self, message: Any) -> None:
        if isinstance(message, Submit):
            self._submit(message)
        elif isinstance(message, Abort):
            self._abort(message.request)
            self._send(Aborted(message.request))
        elif isinstance(message, Load):
            self._loader.submit(self._later, lambda: self._load(message))
        elif isinstance(message, Unload):
            self._unload(message.model)
        elif isinstance(message, Exception):
            raise message
        else:  # a function that another thread left for this one
            message()

    def _later(self, work: Callable[[], Callable[[], None]]) -> None:
        """On another thread: what `work` returns is done on the main one."""
        self._line.put(work())

    def _load(self, load: Load) -> Callable[[], None]:
        begin = time.perf_counter()
        try:
            precision: Any = load.precision
            model = load_model(Path(load.path), load.name, precision, keep_packed=load.keep_packed)
            spec = model.decoder.spec
            if load.max_model_len is not None and load.max_model_len < spec.max_position_embeddings:
                model.decoder.spec = replace(spec, max_position_embeddings=load.max_model_len)
            config = EngineConfig(**load.options)  # type: ignore[arg-type]
            engine = Engine(model.decoder, model.tokenizer, config)
            grammars = Grammars(model.tokenizer, model.decoder.spec.vocab_size)
        except Exception as err:
            failed = LoadFailed(load.model, message_of(err))
            return lambda: self._send(failed)

        def ready() -> None:
            self._models[load.model] = Running(engine, grammars)
            self._send(
                Loaded(
                    load.model,
                    model.context,
                    model.decoder.spec.vocab_size,
                    model.decoder.weight_bytes,
                    engine.runner.cache.nbytes,
                    engine.blocks.capacity(),
                    engine.describe(),
                    time.perf_counter() - begin,
                )
            )

        return ready

    def _unload(self, name: str) -> None:
        if name in self._models:
            for request in [r for r, (model, _) in self._numbers.items() if model == name]:
                self._abort(request)
            del self._models[name]
            gc.collect()
            with contextlib.suppress(AttributeError, OSError):
                ctypes.CDLL(None).malloc_trim(0)

    def _submit(self, submit: Submit) -> None:
        model, source = self._models.get(submit.model), submit.grammar
        if source is None or model is None:
            self._add(submit, None)
            return
        grammars = model.grammars

        def compiled() -> Callable[[], None]:
            try:
                grammar = grammars.compiled(source)
            except Exception as err:
                refused = Refused(submit.request, type(err).__name__, message_of(err))
                return lambda: self._send(refused)

            def add() -> None:
                if self._compiling.pop(submit.request, None) is not None:  # not aborted since
                    self._add(submit, grammar)

            return add

        self._compiling[submit.request] = self._compiler.submit(self._later, compiled)

    def _add(self, submit: Submit, grammar: Any) -> None:
        model = self._models.get(submit.model)
        try:
            if model is None:
                self._send(Refused(submit.request, "NotLoaded", f"model {submit.model} is not loaded"))
                return
            params = params_from_wire(submit.params)
            request = Request(
                submit.prompt_ids,
                params,
                chat=submit.chat,
                stop=submit.stop,
                allowed=None if grammar is None else grammar.matcher,
                show_special=submit.show_special,
            )
            number = model.engine.add(request, priority=submit.priority, tenant=submit.tenant)
        except Exception as err:
            self._send(Refused(submit.request, type(err).__name__, message_of(err)))
            return
        model.requests[number] = submit.request
        model.left[number] = params.n
        if params.prompt_logprobs is not None:
            model.scored.add(number)
        self._numbers[submit.request] = submit.model, number

    def _abort(self, request: int) -> None:
        self._compiling.pop(request, None)
        found = self._numbers.pop(request, None)
        if found is None:
            return
        name, number = found
        model = self._models[name]
        model.engine.abort(number)
        model.requests.pop(number, None)
        model.left.pop(number, None)
        model.scored.discard(number)
        model.gathered.drop(request)
        if not model.engine.has_work():
            self._send(Step(name, (), self._state(model, 0.0)))

    def _flush(self, name: str) -> None:
        model = self._models[name]
        if model.gathered:
            self._send(Step(name, model.gathered.take(time.monotonic()), self._state(model, 0.0)))

    def _step(self, name: str, model: Running) -> None:
        if model.gathered and model.engine.scheduler.prompt_tokens_left > limits.GATHER_PROMPT_TOKENS:
            self._flush(name)  # it takes longer than anything should wait
        begin = time.perf_counter()
        chunks = model.engine.step()
        deltas = []
        for chunk in chunks:
            request = model.requests.get(chunk.index)
            if request is None:
                continue
            scores: Any = ()
            if chunk.choice == 0 and chunk.index in model.scored:
                model.scored.discard(chunk.index)
                done = chunk.completion or model.engine.completions(chunk.index)[0]
                scores = tuple(map(logprob_of, done.prompt_logprobs))
            deltas.append(_delta(request, chunk, scores))
            if chunk.finish_reason is not None:
                model.left[chunk.index] -= 1
                if not model.left[chunk.index]:
                    del model.requests[chunk.index], model.left[chunk.index], self._numbers[request]
        model.steps += 1
        model.gathered.put(deltas)
        now, least = time.monotonic(), interval(len(model.engine.scheduler.running))
        due = model.gathered.take(now, least)
        if due or now - self._told > ALIVE_EVERY_S:
            self._send(Step(name, due, self._state(model, time.perf_counter() - begin)))

    def _state(self, model: Running, seconds: float) -> State:
        engine, now = model.engine, time.monotonic()
        if now - self._resident[1] > RESIDENT_EVERY_S:
            self._resident = _resident_bytes(), now
        scheduler, blocks = engine.scheduler, engine.blocks
        pool = blocks.pools[0]
        return State(
            len(scheduler.running),
            len(scheduler.waiting),
            pool.num_blocks - pool.num_free,
            pool.num_blocks,
            scheduler.num_preemptions,
            blocks.queries,
            blocks.hits,
            model.steps,
            seconds,
            self._resident[0],
        )


def _delta(request: int, chunk: Any, scores: tuple[Logprob, ...]) -> Delta:
    done = chunk.completion
    reason, error = chunk.finish_reason, None if done is None else done.error
    cached, seed = (0, None) if done is None else (done.cached_tokens, done.params.seed)
    logprobs = tuple(map(logprob_of, chunk.logprobs))
    return Delta(
        request, chunk.choice, chunk.text, chunk.token_ids, logprobs, reason, error, cached, seed, scores
    )


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
