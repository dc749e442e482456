"""The errors that clients see: always OpenAI's shape, never a path, a traceback or an address."""

import random

from paragone import limits
from paragone.errors import (
    BadConfiguration,
    ContextLengthExceeded,
    MalformedData,
    NotEnoughMemory,
    NotFound,
    ParagoneError,
    TemplateError,
    TemplateLimit,
    UsageError,
)


class ApiError(Exception):
    """A refusal or a failure, with its status. `param` is the field that it is about."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.message = message.encode("utf-8", "replace").decode()  # it may quote half of a surrogate pair
        self.headers = dict(headers or {})
        if status == 503:
            self.headers.setdefault("Retry-After", str(limits.RETRY_SECONDS))

    @property
    def body(self) -> dict[str, object]:
        """What is sent."""
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
            self.status
        )
        kind = kind or ("invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def overloaded(what: str, within: int = limits.RETRY_SECONDS) -> ApiError:
    """503, with the time after which it is worth trying again: not the same for all, or those who were
    refused together would come back together. `within` is the longest, in seconds."""
    seconds = random.randint(1, within)  # noqa: S311 -- no secret
    return ApiError(503, "overloaded", what, headers={"Retry-After": str(seconds)})


def engine_unavailable() -> ApiError:
    """503: there is no engine's process at the moment."""
    message = "the engine is being started"
    return ApiError(503, "engine_unavailable", message, headers={"Retry-After": "2"})


_KINDS: dict[str, tuple[int, str]] = {
    ContextLengthExceeded.__name__: (400, "context_length_exceeded"),
    TemplateLimit.__name__: (400, "chat_template_limit"),
    TemplateError.__name__: (400, "chat_template_error"),
    UsageError.__name__: (400, "invalid_value"),
    MalformedData.__name__: (400, "invalid_value"),
    BadConfiguration.__name__: (400, "unsupported"),
    "GrammarTooComplex": (400, "grammar_too_complex"),  # the engine's
    "NotLoaded": (503, "model_unavailable"),  # the engine's, of a model that has just made room
    NotFound.__name__: (404, "model_not_found"),
    NotEnoughMemory.__name__: (503, "out_of_memory"),
}


def api_error(kind: str, message: str, param: str | None = None) -> ApiError:
    """The error for one of ours, by its class's name. What is not known is said to be internal, without a
    word of what it was."""
    status, code = _KINDS.get(kind, (500, "engine_error"))
    if status == 500:
        message = "the engine failed on this request"
    return ApiError(status, code, message, param)


def error_of(err: ParagoneError, param: str | None = None) -> ApiError:
    """The error for one of ours."""
    kind = next((c.__name__ for c in type(err).__mro__ if c.__name__ in _KINDS), "")
    return api_error(kind, str(err), param)
