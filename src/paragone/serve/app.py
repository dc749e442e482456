"""The ASGI application: who may ask, which handler answers, and one boundary for everything that goes
wrong."""

import asyncio
import base64
import binascii
import time
import traceback
from typing import Any

import msgspec

from paragone.errors import ParagoneError
from paragone.serve.call import Call, Receive, Scope, Send
from paragone.serve.config import is_loopback
from paragone.serve.errors import ApiError, error_of
from paragone.serve.keys import Key
from paragone.serve.routes import Handler, find
from paragone.serve.state import State

CHALLENGE = 'Bearer realm="paragone"'
# A browser asks its user for a password then, which is the key.
PAGE_CHALLENGE = 'Basic realm="paragone: any name, and the key as the password", charset="UTF-8"'
PAGE_PATHS = "/", "/page.css", "/page.js"
CORS_MAX_AGE_S = 600
STOPPED = "stopped"  # the message of a cancellation that the client is told of


class App:
    """Called by the web server once a request."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._handlers: dict[str, Handler] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        call = Call(scope, receive, send, self.state.bodies)
        self.state.calls.add(call)
        try:
            await self._guarded(call)
        finally:
            call.let_go()
            self.state.calls.discard(call)
            self._note(call)

    async def _guarded(self, call: Call) -> None:
        try:
            await self._handle(call)
            return
        except ApiError as err:
            error = err
        except ParagoneError as err:
            error = error_of(err)
        except asyncio.CancelledError as err:
            if err.args != (STOPPED,):
                raise
            error = ApiError(503, "server_stopped", "the server was stopped before the answer began")
        except Exception as err:
            frame = traceback.extract_tb(err.__traceback__)[-1]
            where = f"{frame.name}:{frame.lineno}"
            self.state.log.event("internal", level="error", id=call.id, kind=type(err).__name__, where=where)
            error = ApiError(
                500, "internal_error", f"something went wrong inside; the log has it as {call.id}"
            )
        if call.started:  # too late for a status: the connection is broken off
            call.status = error.status
            raise ConnectionAbortedError(error.code)
        if error.status == 499:  # there is nobody to tell
            call.status = 499
            return
        await call.reply(
            error.status, msgspec.json.encode(error.body), headers=error.headers | self._cors(call)
        )

    async def _handle(self, call: Call) -> None:
        routes = find(call.path)
        if call.method == "OPTIONS" and (cors := self._cors(call)):
            asked = call.header("access-control-request-headers") or "authorization, content-type"
            more = {"Access-Control-Allow-Methods": "GET, POST", "Access-Control-Allow-Headers": asked[:1000],
                    "Access-Control-Max-Age": str(CORS_MAX_AGE_S)}  # fmt: skip
            await call.reply(204, b"", headers=cors | more)
            return
        route = next((r for r in routes if r.method == call.method), None)
        if route is None and call.method == "HEAD":
            route = next((r for r in routes if r.method == "GET"), None)
        if not (route is not None and route.open):
            call.key = self._authorised(call)
        if not routes:
            raise ApiError(
                404, "not_found", "there is nothing at this address; /openapi.json lists what there is"
            )
        if route is None:
            allowed = ", ".join(r.method for r in routes)
            raise ApiError(
                405, "method_not_allowed", f"only {allowed} works here", headers={"Allow": allowed}
            )
        call.noted["route"] = route.path
        call.cors = self._cors(call)
        handler = self._handlers.get(route.handler)
        if handler is None:
            handler = self._handlers[route.handler] = route.load()
        await handler(self.state, call)

    def _authorised(self, call: Call) -> Key | None:
        """The key that asks. Raises ApiError where there has to be one and is none."""
        if self.state.keys is None:
            self._check_host(call)
            return None
        kind, _, rest = (call.headers.get("authorization") or b"").partition(b" ")
        text = rest.strip() if kind.lower() == b"bearer" else b""
        if kind.lower() == b"basic":
            try:
                text = base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                text = b""
        key = self.state.keys.find(text) if text else None
        if key is None:
            challenge = PAGE_CHALLENGE if call.path in PAGE_PATHS else CHALLENGE
            message = "send the header Authorization: Bearer with a key that is valid here"
            raise ApiError(401, "invalid_api_key", message, headers={"WWW-Authenticate": challenge})
        return key

    def _check_host(self, call: Call) -> None:
        """Without keys only who is on this machine may ask, and no page that a browser has from elsewhere,
        not even one whose name has been made to lead here."""
        if self.state.hosts is None:
            return
        host = (call.header("host") or "").rpartition("@")[2]
        name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
        if name.strip("[]").lower() not in self.state.hosts and not is_loopback(name.strip("[]")):
            raise ApiError(403, "host_not_allowed", "this server has no keys and answers to local names only")

    def _cors(self, call: Call) -> dict[str, str]:
        origin = call.header("origin")
        allowed = self.state.cors
        if origin is None or not (origin in allowed or "*" in allowed):
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": "X-Request-Id, Retry-After",
            "Vary": "Origin",
        }

    def _note(self, call: Call) -> None:
        route = call.noted.get("route", "(none)")
        self.state.metrics.http.labels(route, str(call.status)).inc()
        noted: dict[str, Any] = call.noted | {"route": route}
        ms = round(1e3 * (time.perf_counter() - call.begin), 1)
        key = None if call.key is None else call.key.id[:4]
        quiet = route in ("/health", "/ready", "/metrics", "/machine")
        self.state.log.event(
            "request", level="debug" if quiet else "info", id=call.id, method=call.method[:16],
            status=call.status, ms=ms, key=key, **noted,
        )  # fmt: skip
