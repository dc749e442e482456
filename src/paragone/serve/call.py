"""One HTTP request: its body within the limits, its answer, its line in the log."""

import asyncio
import json
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from paragone import limits
from paragone.checkpoint.jsonfile import parse_json
from paragone.serve.errors import ApiError, overloaded
from paragone.serve.keys import Key

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
T = TypeVar("T")

CLOSE = {"Connection": "close"}
LARGE_BODY = 64 * limits.KIB  # is parsed beside the event loop
VALUE_BYTES = 64  # that a parsed value takes, about
MESSAGE_CHARS = 500
_PLACE = re.compile(r"^(.*?)(?: - at (?:`key` in )?`\$(.*)`)?$", re.DOTALL)
_FIELD = re.compile(r"(?:field|key) `([^`]*)`")


@dataclass
class Bodies:
    """What the bodies of all requests hold together."""

    used: int = 0  # bytes


class Call:
    """What a handler gets. `path` is the raw one of the request line: no header can change it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, bodies: "Bodies") -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self._bodies, self._held = bodies, 0
        self.id = f"req_{uuid.uuid4().hex[:16]}"
        self.path: str = scope["path"]
        self.method: str = scope["method"]
        self.headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        self.begin = time.perf_counter()
        self.key: Key | None = None
        self.started = False  # whether an answer has begun
        self.status = 0
        self.noted: dict[str, Any] = {}  # for the log
        self.cors: dict[str, str] = {}  # headers for a page of another origin that may read this
        self.task = asyncio.current_task()

    def header(self, name: str) -> str | None:
        """A header's value, its bytes as Latin-1."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    @property
    def tenant(self) -> str:
        """Whose cached beginnings may be shared with this request."""
        return "" if self.key is None else self.key.id

    async def body(self) -> bytes:
        """All of it. Raises ApiError where it is too large, too slow or encoded."""
        encoding = self.header("content-encoding")
        if encoding not in (None, "identity"):
            raise ApiError(415, "unsupported_encoding", "a compressed body is not taken")
        too_large = ApiError(413, "body_too_large", f"a body has at most {limits.BODY_BYTES} bytes")
        length = self.header("content-length")
        if length is not None and length.isdecimal() and int(length[:20]) > limits.BODY_BYTES:
            raise too_large
        data = bytearray()
        try:
            async with asyncio.timeout(limits.BODY_SECONDS):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(499, "client_closed", "the client has gone")
                    piece = message.get("body", b"")
                    self._hold(len(piece))
                    data += piece
                    if len(data) > limits.BODY_BYTES:
                        raise too_large
                    if not message.get("more_body"):
                        return bytes(data)
        except TimeoutError:
            seconds = f"{limits.BODY_SECONDS:g}"
            raise ApiError(
                408, "timeout", f"the body took more than {seconds} seconds", headers=CLOSE
            ) from None

    async def json(self, kind: type[T]) -> T:
        """The body as one of the types of schemas.py. Raises ApiError naming the field that is wrong."""
        content_type = (self.header("content-type") or "").partition(";")[0].strip().lower()
        data = await self.body()
        if content_type != "application/json":
            raise ApiError(415, "unsupported_media_type", "send the header Content-Type: application/json")
        # What becomes of it takes many times its bytes: a list of small things most.
        if (values := data.count(b",") + data.count(b"[") + data.count(b"{")) > limits.BODY_VALUES:
            message = f"the body has more than {limits.BODY_VALUES} commas and brackets"
            raise ApiError(413, "body_too_large", message)
        self._hold(values * VALUE_BYTES)
        if len(data) > LARGE_BODY:
            return await asyncio.to_thread(decode, data, kind)
        return decode(data, kind)

    def _hold(self, size: int) -> None:
        self._held += size
        self._bodies.used += size
        if self._bodies.used > limits.BODIES_BYTES:
            raise overloaded("too much is being sent at once")

    def let_go(self) -> None:
        """Of the body, when the request has ended."""
        self._bodies.used -= self._held
        self._held = 0

    async def gone(self) -> None:
        """Returns when the client has closed the connection."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def reply(
        self,
        status: int,
        body: bytes,
        content_type: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        """The whole answer."""
        sized = {"Content-Length": str(len(body))} | (headers or {})
        await self.start(status, content_type, sized)
        await self.send(b"" if self.method == "HEAD" else body, more=False)

    async def start(self, status: int, content_type: str, headers: dict[str, str] | None = None) -> None:
        """Begins an answer."""
        self.started, self.status = True, status
        both = {"Content-Type": content_type, "X-Request-Id": self.id} | self.cors | (headers or {})
        encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in both.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def send(self, data: bytes, *, more: bool = True) -> None:
        """Goes on with it; waits while the client does not read."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


def decode(data: bytes, kind: type[T]) -> T:
    """A body's bytes as a type of schemas.py. Raises ApiError (400) saying what is wrong, and where."""
    try:
        value = parse_json(data, _number)
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()  # halves of surrogate pairs are no text
    except RecursionError:
        raise ApiError(400, "invalid_json", "the body is nested too deeply") from None
    except UnicodeError:
        raise ApiError(400, "invalid_json", "the body is no UTF-8 text") from None
    except ValueError as err:
        raise ApiError(400, "invalid_json", f"the body is no JSON: {str(err)[:200]}") from None
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as err:
        raise _invalid(str(err)) from None


def _number(digits: str) -> int | float:
    """To JSON Schema, and so to a client's encoder, 5.0 is a whole number."""
    value = float(digits)
    return int(value) if value.is_integer() and abs(value) < 1 << 53 else value


def _invalid(text: str) -> ApiError:
    if len(text) > MESSAGE_CHARS:  # it quotes what was sent
        text = f"{text[: MESSAGE_CHARS // 2]}...{text[-MESSAGE_CHARS // 2 :]}"
    found = _PLACE.match(text)
    what, place = (found[1], found[2] or "") if found else (text, "")
    field = _FIELD.search(what)
    place = place.lstrip(".")
    if field and "unknown" in what:
        name = f"{place}.{field[1]}".lstrip(".")
        return ApiError(400, "unsupported_field", f"{name} is not supported", name)
    if field and "missing" in what:
        name = f"{place}.{field[1]}".lstrip(".")
        return ApiError(400, "missing_field", f"{name} is missing", name)
    message = f"{place}: {what}" if place else what
    return ApiError(400, "invalid_value", message[:MESSAGE_CHARS], place or None)
