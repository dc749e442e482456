"""A closed loop of clients against any server of OpenAI's completions; run by serve.py.

    python load_client.py PORT MODEL CLIENTS SECONDS TOKENS PID [retry]

Each client asks, reads the stream to its end, and asks again, with a prompt of its own; all of them share one
thread of a light event loop, for the server is on the same processors. Prints one JSON line: tokens/s over
the measured seconds (a fifth of them goes by first), time to the first event and between events (seconds:
p50, p99), statuses, how long refusals took, and which share of all processors' time these clients and the
process PID took (besides). An event may have several tokens, or none: how many an answer has is known, and
its events share them evenly. A refused client waits as Retry-After says where `retry` is given.
"""

import asyncio
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

AT_ONCE = 64  # answers that servers make, at most
PATIENCE_S = 20.0  # with the answers that have not ended when the time is over

WORDS = (
    "river",
    "stone",
    "amber",
    "field",
    "paper",
    "cloud",
    "winter",
    "garden",
    "copper",
    "voice",
    "silver",
)


class Questions:
    """What the clients ask, in whatever order they come. No prompt comes twice, in this run or in
    another, for what a cache has of the last turn would be left out of this one."""

    def __init__(self, clients: int, typical: int) -> None:
        """`typical` tokens are in an answer."""
        self.clients, self.typical, self.run = clients, typical, f"{time.time() % 1e5:.0f}"
        self._turns: Counter[int] = Counter()

    def next(self, client: int) -> tuple[str, int]:
        """A client's next prompt, of about twenty tokens, and how many its answer has: half as many as are
        typical to half as many again. The first answers are cut, from nearly nothing to whole, as if all had
        been asking for long: nobody's answers end at the same moment, and prompts are read at all times."""
        self._turns[client] += 1
        number = client * 1009 + self._turns[client]
        words = " ".join(WORDS[(number * 7 + i * (number % 5 + 1)) % len(WORDS)] for i in range(10))
        tokens = self.typical // 2 + number * 37 % (self.typical + 1)
        running = min(self.clients, AT_ONCE)
        if self._turns[client] == 1 and client < running:
            tokens = max(1, tokens * (client + 1) // running)
        return f"{self.run} {number} {words}", tokens


class Client(asyncio.Protocol):
    """One connection, kept open."""

    def __init__(self, loop: "Load", number: int) -> None:
        self.load, self.number = loop, number
        self.events, self.counted, self.asked = 0, 0, 0  # of this answer: all, those measured; its tokens
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop has classes of its own
        self.ask()

    def ask(self) -> None:
        if self.transport is None or self.load.over:
            return
        prompt, self.asked = self.load.questions.next(self.number)
        self.events, self.counted = 0, 0
        self.load.open.add(self)
        body = json.dumps(
            {
                "model": self.load.model, "prompt": prompt, "stream": True,
                "max_tokens": self.asked, "ignore_eos": True, "temperature": 0,
            }
        ).encode()  # fmt: skip
        headers = f"Host: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        head = f"POST /v1/completions HTTP/1.1\r\n{headers}\r\n\r\n"
        self.begin = self.last = time.perf_counter()
        self.first, self.status, self.held = True, 0, b""
        self.transport.write(head.encode() + body)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self.status != 200:
            self.held += data
            head, end, data = self.held.partition(b"\r\n\r\n")
            if not end:
                return
            self.status = int(head[9:12])
        if self.status != 200:
            self.refused(head.lower(), data, now)
            return
        events = data.count(b'"text":') or data.count(b'"content":')
        if events:
            self.events += events
            if self.load.measuring:
                self.counted += events
            self.load.came(now - self.begin if self.first else now - self.last, self.first)
            self.first, self.last = False, now
        if b"data: [DONE]" in data or data.endswith(b"0\r\n\r\n"):
            self.load.statuses[200] = self.load.statuses.get(200, 0) + 1
            self.load.ended(self, whole=True)
            asyncio.get_running_loop().call_soon(self.ask)

    def refused(self, head: bytes, body: bytes, now: float) -> None:
        """Asks again, when it is told to, once the whole refusal has come."""
        headers = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) < int(headers.get(b"content-length", b"0")):
            return
        self.load.open.discard(self)
        self.load.refused(self.status, now - self.begin)
        wait = float(headers.get(b"retry-after", b"1")) if self.load.retry else 0.0
        asyncio.get_running_loop().call_later(wait, self.ask)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """An answer that breaks off is status 0; servers that end the connection after each answer are asked
        over another at once, as every client does it."""
        self.transport = None
        broken = self in self.load.open and self.status
        self.load.ended(self, whole=False)
        if not self.load.over:
            if broken:
                self.load.refused(0, 0.0)
            asyncio.get_running_loop().call_later(0.1 if broken else 0.0, self.load.connect, self.number)


class Load:
    """All of them, and what they saw."""

    def __init__(self, port: int, model: str, questions: Questions, pid: int, *, retry: bool) -> None:
        self.port, self.model, self.questions, self.pid, self.retry = port, model, questions, pid, retry
        self.over, self.measuring, self.count = False, False, 0.0
        self.open: set[Client] = set()  # whose answers have not ended
        self.ttft: list[float] = []
        self.between: list[float] = []
        self.refusals: list[float] = []
        self.statuses: dict[int, int] = {}
        self._tasks: set[Any] = set()

    def came(self, spent: float, first: bool) -> None:
        if self.measuring:
            (self.ttft if first else self.between).append(spent)

    def ended(self, client: Client, *, whole: bool) -> None:
        """Its answer is whole, or will never be, and then an event is taken for a token."""
        if client in self.open and client.events:
            self.count += client.counted * (client.asked / client.events if whole else 1)
        self.open.discard(client)

    def refused(self, status: int, spent: float) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if self.measuring and status:
            self.refusals.append(spent)

    def connect(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._connect(number))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, number: int) -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: Client(self, number), "127.0.0.1", self.port
            )
        except OSError:
            if not self.over:
                asyncio.get_running_loop().call_later(0.2, self.connect, number)

    def processors_time(self) -> float:
        """Seconds that the process that speaks HTTP, and this one, have computed so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + time.process_time()

    async def run(self, seconds: float) -> dict[str, Any]:
        for number in range(self.questions.clients):
            self.connect(number)
        await asyncio.sleep(seconds / 5)
        self.measuring, begin, before = True, time.perf_counter(), self.processors_time()
        await asyncio.sleep(seconds * 4 / 5)
        spent = time.perf_counter() - begin
        besides = (self.processors_time() - before) / (spent * len(os.sched_getaffinity(0)))
        self.measuring, self.over = False, True
        patience = time.perf_counter() + PATIENCE_S
        while self.open and time.perf_counter() < patience:
            await asyncio.sleep(0.1)
        for client in tuple(self.open):
            self.ended(client, whole=False)

        def at(values: list[float], share: float) -> float | None:
            ordered = sorted(values)
            return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None

        return {
            "tokens_per_s": self.count / spent,
            "ttft_p50_s": at(self.ttft, 0.5), "ttft_p99_s": at(self.ttft, 0.99),
            "between_p50_s": at(self.between, 0.5), "between_p99_s": at(self.between, 0.99),
            "refusal_p99_s": at(self.refusals, 0.99), "statuses": self.statuses, "besides": besides,
        }  # fmt: skip


def main(port: str, model: str, clients: str, seconds: str, tokens: str, pid: str, retry: str = "") -> None:
    load = Load(int(port), model, Questions(int(clients), int(tokens)), int(pid), retry=bool(retry))
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:
        runner = asyncio.Runner()
    with runner:
        print(json.dumps(runner.run(load.run(float(seconds)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
