"""Every address of the server, in one table: what answers, who may ask, what is sent and what comes back."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from paragone.serve import schemas


@dataclass(frozen=True)
class Route:
    """`handler` is MODULE:FUNCTION below paragone.serve; `open` where no key is needed; `body` the type of
    what is sent; `refusals` the statuses that it may answer with beside 200."""

    method: str
    path: str
    handler: str
    title: str
    body: type[Any] | None = None
    open: bool = False
    media: str = "application/json"
    stream: bool = False
    refusals: tuple[int, ...] = ()

    def load(self) -> "Handler":
        """The function itself."""
        import importlib

        module, _, name = self.handler.partition(":")
        found: Handler = getattr(importlib.import_module(f"paragone.serve.{module}"), name)
        return found


Handler = Callable[[Any, Any], Awaitable[None]]
BODY = 400, 404, 408, 413, 415, 429, 500, 503
WORK = *BODY, 504

ROUTES = (
    Route("POST", "/v1/chat/completions", "generate:chat", "Answer a conversation", schemas.ChatRequest,
          stream=True, refusals=WORK),
    Route("POST", "/v1/completions", "generate:completion", "Continue texts", schemas.CompletionRequest,
          stream=True, refusals=WORK),
    Route("GET", "/v1/models", "pages:models", "List the models"),
    Route("GET", "/v1/models/{model}", "pages:model", "Describe a model", refusals=(404, 500)),
    Route("POST", "/v1/chat/completions/render", "pages:render", "What the model would see",
          schemas.RenderRequest, refusals=BODY),
    Route("POST", "/apply-template", "pages:render", "The same, by llama.cpp's name",
          schemas.RenderRequest, refusals=BODY),
    Route("POST", "/tokenize", "pages:tokenize", "Token ids of a text or a conversation",
          schemas.TokenizeRequest, refusals=BODY),
    Route("POST", "/detokenize", "pages:detokenize", "The text of token ids",
          schemas.DetokenizeRequest, refusals=BODY),
    Route("GET", "/health", "pages:health", "Whether the engine lives", open=True, refusals=(503,)),
    Route("GET", "/ready", "pages:ready", "Whether a request would be taken now", open=True, refusals=(503,)),
    Route("GET", "/version", "pages:version", "Paragone's version", open=True),
    Route("GET", "/metrics", "pages:metrics", "Counts for Prometheus", media="text/plain"),
    Route("GET", "/machine", "pages:machine", "The server's and the machine's state"),
    Route("GET", "/openapi.json", "pages:openapi", "This document"),
    Route("GET", "/", "pages:page", "A page to talk to the models", media="text/html"),
    Route("GET", "/page.css", "pages:page", "The page's looks", media="text/css"),
    Route("GET", "/page.js", "pages:page", "The page's code", media="text/javascript"),
)  # fmt: skip
MODEL_PREFIX = "/v1/models/"


def find(path: str) -> list[Route]:
    """The routes of a path, one a method."""
    if path.startswith(MODEL_PREFIX) and path != MODEL_PREFIX:
        path = "/v1/models/{model}"
    elif "{" in path:
        return []
    return [route for route in ROUTES if route.path == path]
