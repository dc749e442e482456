"""The HTTP process from start to end: its parts, its signals, what it does every second."""

import asyncio
import contextlib
import functools
import gc
import logging
import resource
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvicorn

from paragone import limits
from paragone.errors import BadConfiguration, ParagoneError, Unavailable
from paragone.serve.app import STOPPED, App
from paragone.serve.config import ServeConfig, is_loopback
from paragone.serve.errors import ApiError
from paragone.serve.grammar_check import GrammarCheck
from paragone.serve.keys import KeyRing, KeyStore
from paragone.serve.limiter import Limiter
from paragone.serve.link import EngineLink
from paragone.serve.logs import Log
from paragone.serve.messages import Loaded, LoadFailed
from paragone.serve.metrics import Metrics
from paragone.serve.models import Models, ServedModel
from paragone.serve.process import ForkServer
from paragone.serve.protocol import GuardedProtocol
from paragone.serve.state import State
from paragone.text.chat import RENDERER

LAG_EVERY_S = 0.25
THREADS = 8  # for what would keep the event loop waiting; each keeps a megabyte of what it has once needed
SPARE_FILES = 256  # that are no connections
STOPPED_SECONDS = 3.0  # for answers that were broken off to say so
EXIT_GIVEN_UP = 70


def set_apart() -> None:
    """Takes what is here for good out of the garbage collector's sight, which otherwise looks through it for
    a tenth of a second now and then, while everybody waits."""
    gc.collect()
    gc.freeze()


class Service(uvicorn.Server):
    """One server. `run` returns the exit code."""

    def __init__(
        self,
        config: ServeConfig,
        models: list[ServedModel],
        engine: dict[str, int | bool | None],
        forks: ForkServer,
    ) -> None:
        """`engine` are fields of EngineConfig, `forks` is where its process comes from.
        Raises BadConfiguration where it would be open to strangers without keys."""
        self.settings = config
        self.store = KeyStore(config.key_file)
        ring = KeyRing(self.store.all()) if config.keys else None
        if ring is None and not is_loopback(config.host):
            raise BadConfiguration(
                f"{config.host} can be reached from other machines: add --keys (`paragone keys create NAME` "
                "makes one), or stay on 127.0.0.1"
            )
        if ring is not None and not len(ring):
            raise BadConfiguration("there are no keys: `paragone keys create NAME` makes one")
        log = Log(config.log_format, config.log_level)
        link = EngineLink(log, forks, config.step_seconds)
        served = Models(
            link, models, engine, log, max_model_len=config.max_model_len, memory_bytes=config.memory_bytes,
            keep_packed=config.keep_packed,
        )  # fmt: skip
        metrics = Metrics()
        link.on_step = lambda step: metrics.step(step.model, step.state)
        link.on_given_up = self._give_up
        loaded, down = link.on_loaded, link.on_down  # the models'

        def on_loaded(message: Loaded | LoadFailed) -> None:
            metrics.forget(message.model)
            loaded(message)
            set_apart()

        def on_down() -> None:
            metrics.down()
            down()

        link.on_loaded, link.on_down = on_loaded, on_down
        running = engine.get("max_num_seqs") or 64
        hosts = frozenset({"localhost", config.host.lower()}) if ring is None else None
        self.state = State(
            log, link, served, Limiter(int(running) + config.queue), metrics, GrammarCheck(), ring, hosts,
            config.cors, config.request_seconds,
        )  # fmt: skip
        self._exit_code = 0
        self._stopping = 0
        self._housekeeper = ThreadPoolExecutor(1, "housekeeper")  # never behind what strangers have asked for
        GuardedProtocol.most = _connections()
        self._tasks: list[asyncio.Task[None]] = []
        for name in ("uvicorn.error", "uvicorn.access"):
            logging.getLogger(name).disabled = True
        super().__init__(
            uvicorn.Config(
                App(self.state), http=GuardedProtocol, ws="none", lifespan="off", log_config=None,
                access_log=False, server_header=False, timeout_keep_alive=30, timeout_graceful_shutdown=2,
                ssl_certfile=config.certificate, ssl_keyfile=config.certificate_key, backlog=1024,
            )
        )  # fmt: skip

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are handled here, not by uvicorn."""
        yield

    def run(self, sockets: list[socket.socket] | None = None) -> int:  # type: ignore[override]
        """Serves until it is told to stop; the exit code."""
        bound = sockets or [bind(self.settings.host, self.settings.port)]
        factory = None
        with contextlib.suppress(ImportError):
            import uvloop

            factory = uvloop.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(self._run(bound))
        return self._exit_code

    async def _run(self, sockets: list[socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(THREADS, "handler"))
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        state = self.state
        try:
            await state.link.start()
            RENDERER.start()
            state.grammars.process.start()
            self._tasks = [
                loop.create_task(work)
                for work in (self._every_second(), self._measure_lag(), self._load_first())
            ]
            scheme = "https" if self.settings.certificate else "http"
            host, port = sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            state.log.event(
                "listening", url=f"{scheme}://{shown}:{port}", models=[m.name for m in state.models]
            )
            set_apart()
            if self.settings.certificate:  # uvicorn has no word for it, and a minute is long
                loop.create_server = functools.partial(  # type: ignore[method-assign]
                    loop.create_server, ssl_handshake_timeout=limits.HEADER_SECONDS
                )
            await self.serve(sockets)
        finally:
            for task in self._tasks:
                task.cancel()
            await state.link.close()
            state.grammars.process.stop()
            RENDERER.stop()
            with contextlib.suppress(ParagoneError):
                await self._write_usage()
            state.log.event("stopped", exit_code=self._exit_code)

    async def _load_first(self) -> None:
        """The first model before anybody asks, or all of them."""
        names = [model.name for model in self.state.models]
        for name in names if self.settings.load_all else names[:1]:
            with contextlib.suppress(ApiError):  # is in the log, and again whoever asks for it
                await self.state.models.use(name)

    def _on_signal(self) -> None:
        self._stopping += 1
        if self._stopping == 1:
            self._tasks.append(asyncio.get_running_loop().create_task(self._drain()))
        else:
            self._exit_code = self._exit_code or 1
            self._break_off("the server was stopped")
            self.should_exit = True

    async def _drain(self) -> None:
        """Lets what has begun come to its end, and takes nothing new."""
        state = self.state
        state.limiter.draining = True
        state.log.event("draining", inside=state.limiter.inside, seconds=self.settings.drain_seconds)
        deadline = time.monotonic() + self.settings.drain_seconds
        while state.limiter.inside and time.monotonic() < deadline and not self.should_exit:
            await asyncio.sleep(0.02)
        if state.limiter.inside:
            self._exit_code = self._exit_code or 1
            self._break_off("the server was stopped before the answer was complete")
            deadline = time.monotonic() + STOPPED_SECONDS
            while state.limiter.inside and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
        self.should_exit = True

    def _break_off(self, why: str) -> None:
        for stream in set(self.state.link.streams.values()):
            self.state.link.abort(stream, ApiError(503, "server_stopped", why))
        self.state.models.fail_loading()
        for call in self.state.calls:
            if not call.started and call.task is not None:
                call.task.cancel(STOPPED)

    def _give_up(self) -> None:
        self._exit_code = EXIT_GIVEN_UP
        self.state.limiter.draining = True
        self._break_off("the engine ended too often")
        self.state.log.event("given_up", level="error", why="the engine ended too often")
        self.should_exit = True

    async def _every_second(self) -> None:
        read = _stamp(self.store.path)
        while True:
            await asyncio.sleep(1.0)
            try:
                await self._write_usage()
                stamp = _stamp(self.store.path)
                if self.state.keys is not None and stamp != read:
                    loop = asyncio.get_running_loop()
                    self.state.keys = KeyRing(await loop.run_in_executor(self._housekeeper, self.store.all))
                    read = stamp
            except Exception as err:  # what could not be done is tried again in a second
                self.state.log.event("housekeeping", level="error", error=type(err).__name__)

    async def _write_usage(self) -> None:
        used = self.state.limiter.take_used()
        if used:
            try:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._housekeeper, self.store.add_usage, used)
            except ParagoneError:
                self.state.limiter.give_back(used)
                raise

    async def _measure_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            self.state.metrics.lag.observe(max(loop.time() - due, 0.0))


def _connections() -> int:
    """How many there may be: as many as the system allows files, but for some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return max(16, min(limits.CONNECTIONS, soft - SPARE_FILES))


def _stamp(path: Path) -> tuple[int, int]:
    """Changes when the file does; with the log that SQLite writes beside it."""
    stamps = [0, 0]
    for at, name in enumerate((path, path.with_name(path.name + "-wal"))):
        with contextlib.suppress(OSError):
            stamps[at] = name.stat().st_mtime_ns
    return stamps[0], stamps[1]


def bind(host: str, port: int) -> socket.socket:
    """The one socket that listens. Raises Unavailable where the address cannot be had."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, number)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as err:
        raise Unavailable(f"{host}:{port}: {err.strerror or err}") from None
    made.set_inheritable(False)
    return made
