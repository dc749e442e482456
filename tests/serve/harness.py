"""A server in a process of its own, and a client that hides nothing of what comes back."""

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from paragone.serve.process import ForkServer

STARTS_WITHIN_S = 60.0
# Two would mostly wait for each other where other tests and clients are at work beside a small model.
ONE_THREAD = {"PARAGONE_THREADS": "1"}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def error(self) -> dict[str, Any]:
        found = self.json["error"]
        assert set(found) == {"message", "type", "param", "code"}, found
        return found

    @property
    def events(self) -> list[Any]:
        """The objects of a stream, without its end."""
        return events_of(self.data)


def events_of(data: bytes) -> list[Any]:
    lines = [event for event in data.decode().split("\n\n") if event]
    assert all(line.startswith("data: ") for line in lines), lines[:3]
    return [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]


def children(pid: int) -> list[int]:
    """The processes that one has started."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    port: int
    scheme: str
    lines: list[dict[str, Any]]
    model: str
    key: str | None = None
    raw: list[bytes] = field(default_factory=list)
    forks_pid: int | None = None  # where that is not its child

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def connect(self, timeout: float = 60.0) -> http.client.HTTPConnection:
        if self.scheme == "https":
            context = ssl._create_unverified_context()
            return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout, context=context)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        timeout: float = 60.0,
    ) -> Answer:
        """`body`: bytes as they are, anything else as JSON."""
        sent = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        if body is not None:
            sent["Content-Type"] = "application/json"
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        with contextlib.closing(self.connect(timeout)) as connection:
            connection.request(method, path, data, sent | (headers or {}))
            found = connection.getresponse()
            return Answer(found.status, {k.lower(): v for k, v in found.getheaders()}, found.read())

    def get(self, path: str, **options: Any) -> Answer:
        return self.ask("GET", path, **options)

    def post(self, path: str, body: Any, **options: Any) -> Answer:
        return self.ask("POST", path, body, **options)

    def chat(self, text: str = "Hello", **fields: Any) -> Answer:
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], "max_tokens": 8}
        return self.post("/v1/chat/completions", body | fields)

    def complete(self, prompt: Any = "Hello", **fields: Any) -> Answer:
        return self.post("/v1/completions", {"model": self.model, "prompt": prompt, "max_tokens": 8} | fields)

    def raw_socket(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def wait_until_ready(self, seconds: float = STARTS_WITHIN_S) -> float:
        """Until a request is answered; how long that took."""
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.get("/ready").status == 200 and self.complete(max_tokens=1).status == 200:
                    return time.monotonic() - begin
            time.sleep(0.02)
        raise AssertionError(f"not ready after {seconds} s: {self.lines[-5:]} {self.raw[-5:]}")

    def machine(self) -> dict[str, Any]:
        return self.get("/machine").json

    def idle(self, seconds: float = 10.0) -> dict[str, Any]:
        """Waits until nothing runs and every block is free; raises where that does not happen."""
        deadline = time.monotonic() + seconds
        while True:
            state = self.machine()
            busy = [
                m for m in state["models"] if m.get("running") or m.get("waiting") or m.get("blocks_used")
            ]
            if not busy and state["requests_inside"] == 0:
                return state
            assert time.monotonic() < deadline, state
            time.sleep(0.01)

    def wait_until_inside(self, answers: int) -> None:
        """Until so many are wanted, as the server counts them."""
        deadline = time.monotonic() + 20
        while (inside := self.machine()["requests_inside"]) != answers:
            assert time.monotonic() < deadline, inside
            time.sleep(0.01)

    def fork_server_pid(self) -> int:
        if self.forks_pid is not None:
            return self.forks_pid
        (found,) = (
            pid
            for pid in children(self.process.pid)
            if b"paragone.serve.fork_server" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        return found

    def engine_pid(self) -> int:
        (found,) = children(self.fork_server_pid())
        return found

    @contextlib.contextmanager
    def engine_held(self) -> Iterator[None]:
        """It does nothing meanwhile, so that what runs cannot be over, however fast the machine is."""
        pid = self.engine_pid()
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def stop(self, number: int = signal.SIGTERM, seconds: float = 40.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(seconds)

    def events(self, name: str) -> list[dict[str, Any]]:
        """What the log has of a kind."""
        return [line for line in self.lines if line["event"] == name]

    def wait_for_event(self, name: str) -> None:
        """The log is read by a thread: what it has may come a moment after an answer."""
        deadline = time.monotonic() + 15
        while not self.events(name):
            assert time.monotonic() < deadline, name
            time.sleep(0.05)


class Forks:
    """What engines of short-lived servers are forked from (launch.py), for as many servers at once as it is
    asked for. Importing PyTorch takes longer than most of what is tried."""

    def __init__(self) -> None:
        self._all: list[ForkServer] = []
        self._free: list[ForkServer] = []

    def prepare(self, count: int) -> None:
        """For the main thread: what another thread starts ends with that."""
        while len(self._all) < count:
            with mock.patch.dict(os.environ, ONE_THREAD):
                self._all.append(ForkServer())
            self._free.append(self._all[-1])

    @contextlib.contextmanager
    def lent(self) -> Iterator[ForkServer]:
        """One that nobody else has."""
        forks = self._free.pop()
        try:
            yield forks
        finally:
            self._free.append(forks)


FORKS = Forks()


@contextlib.contextmanager
def serving(
    *arguments: str, model: str, home: Path | None = None, key: str | None = None, lent: bool = False
) -> Iterator[Server]:
    """A server that takes requests for `model`; it is gone afterwards. `lent`: its engines are forked from
    what the tests have (FORKS)."""
    environment = os.environ | (ONE_THREAD if "tiny" in model else {})
    if home is not None:
        environment["PARAGONE_HOME"] = str(home)
    starts, passed, forks_pid = ["paragone", "serve"], [], None
    with contextlib.ExitStack() as stack:
        if lent:
            forks = stack.enter_context(FORKS.lent())
            passed, forks_pid = [forks._control.fileno()], forks._process.pid
            starts = ["tests.serve.launch", str(*passed)]
        command = [sys.executable, "-m", *starts, "--port", "0", "--log-format", "json", *arguments]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, pass_fds=passed)
        yield stack.enter_context(answering(process, model, key, forks_pid))


@contextlib.contextmanager
def answering(
    process: subprocess.Popen[bytes], model: str, key: str | None, forks_pid: int | None
) -> Iterator[Server]:
    """The server of a process, once it takes requests; the process is gone afterwards."""
    lines: list[dict[str, Any]] = []
    raw: list[bytes] = []
    listening = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            raw.append(line)
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
                if lines[-1]["event"] == "listening":
                    listening.set()
        listening.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        listening.wait(STARTS_WITHIN_S)
        url = next((line["url"] for line in lines if line["event"] == "listening"), None)
        assert url is not None, b"".join(raw).decode()
        scheme, _, rest = url.partition("://")
        server = Server(process, int(rest.rpartition(":")[2]), scheme, lines, model, key, raw, forks_pid)
        server.wait_until_ready()
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


SMALL = "--kv-cache-mb", "64"


def serving_tiny(folder: Path, *more: str, lent: bool = True) -> contextlib.AbstractContextManager[Server]:
    """With engines that have PyTorch from the start, three servers at once at most."""
    if lent:
        FORKS.prepare(3)
    return serving(f"tiny={folder}:bf16", *SMALL, *more, model="tiny", lent=lent)
