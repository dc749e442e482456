"""uvicorn's HTTP protocol with bounds on what a stranger's connection may take: time and bytes of a head, and
how many connections there are."""

import asyncio
import re
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from paragone import limits
from paragone.serve.errors import ApiError

UPGRADE = b"upgrade:"
_UPGRADE = re.compile(rb"^upgrade(?=:)", re.IGNORECASE | re.MULTILINE)


class GuardedProtocol(HttpToolsProtocol):
    """One connection. `most` is how many there may be."""

    most = limits.CONNECTIONS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._in_head = True
        self._expects_head = True
        self._held = b""  # the beginning of a line that may become an Upgrade header
        self._refused = False
        self._deaf = False  # what comes after a request that is being answered is not heard
        self._timer: asyncio.TimerHandle | None = None  # for a head, or for what is left of a body
        self._unread: asyncio.TimerHandle | None = None  # for a client that does not read its answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self._refuse(ApiError(503, "overloaded", "too many connections", headers={"Retry-After": "5"}))
            return
        self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(limits.UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_waiting()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # an answer that was never read would keep it open for ever
        super().timeout_keep_alive_handler()

    def _stop_waiting(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused or self._deaf:
            return
        if self._expects_head:
            data = self._without_upgrade(data)
        super().data_received(data)
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self._await_head()  # a line end before a request ends the wait for one, and is none
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > limits.HEADER_BYTES:
                self._refuse_large_head()

    def _without_upgrade(self, data: bytes) -> bytes:
        """The same with Upgrade headers under another name. A client that would rather speak HTTP/2 (Java's
        offers it with every request) is answered in HTTP/1.1, but the parser takes no body after such an
        offer."""
        head, end, rest = (self._held + data).partition(b"\r\n\r\n")
        self._held = b""
        begun = head[head.rfind(b"\n") + 1 :]
        if not end and begun and UPGRADE.startswith(begun.lower()):
            head, self._held = head[: -len(begun)], begun
        return _UPGRADE.sub(b"x-upgrade", head) + end + rest

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._await_head()

    def on_headers_complete(self) -> None:
        if self._deaf:
            return
        self._in_head = self._expects_head = False
        if self.cycle is not None and not self.cycle.response_complete:
            # A request behind one that is being answered. Whoever waits would have to stop listening to the
            # client, and not hear that it leaves: the connection is closed behind the answer instead.
            self._deaf, self.cycle.keep_alive = True, False
            self._stop_timer()
            return
        self._stop_timer()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > limits.HEADER_BYTES:
            self._refuse_large_head()
        if not self._refused:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._refused or self._deaf:
            return
        if self.cycle.response_complete and self._timer is None:
            # Nobody wants the rest, but a client that is still sending would not see the answer if the
            # connection were closed now.
            self._timer = self.loop.call_later(limits.BODY_SECONDS, self.transport.close)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop_timer()
        if not self._refused and not self._deaf:
            self._expects_head = True
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 -- uvicorn's interface
        """What is no HTTP."""
        self._refuse(ApiError(400, "invalid_request", "this is no HTTP request"))

    def _refuse_large_head(self) -> None:
        message = f"the head of a request has at most {limits.HEADER_BYTES} bytes"
        self._refuse(ApiError(431, "headers_too_large", message))

    def _await_head(self) -> None:
        if self._timer is None and not self._refused:
            self._timer = self.loop.call_later(limits.HEADER_SECONDS, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        message = f"the head of the request took more than {limits.HEADER_SECONDS:g} seconds"
        self._refuse(ApiError(408, "timeout", message))

    def _refuse(self, error: ApiError) -> None:
        """Answers and closes; what still comes is not read."""
        if self._refused:
            return
        self._refused = True
        self._stop_timer()
        body = msgspec.json.encode(error.body)
        head = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in (head | error.headers).items())
        self.transport.write(STATUS_LINE[error.status] + lines.encode() + b"\r\n" + body)
        self.transport.close()
