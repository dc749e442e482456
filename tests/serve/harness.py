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

STARTS_WITHIN_S = 60.0


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

    def fork_server_pid(self) -> int:
        (found,) = (
            pid
            for pid in children(self.process.pid)
            if b"paragone.serve.fork_server" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        return found

    def engine_pid(self) -> int:
        (found,) = children(self.fork_server_pid())
        return found

    def stop(self, number: int = signal.SIGTERM, seconds: float = 40.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(seconds)

    def events(self, name: str) -> list[dict[str, Any]]:
        """What the log has of a kind."""
        return [line for line in self.lines if line["event"] == name]


@contextlib.contextmanager
def serving(
    *arguments: str, model: str, home: Path | None = None, key: str | None = None
) -> Iterator[Server]:
    """A server that takes requests for `model`; it is gone afterwards."""
    environment = dict(os.environ)
    if home is not None:
        environment["PARAGONE_HOME"] = str(home)
    command = [sys.executable, "-m", "paragone", "serve", "--port", "0", "--log-format", "json", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)
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
        server = Server(process, int(rest.rpartition(":")[2]), scheme, lines, model, key, raw)
        server.wait_until_ready()
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
