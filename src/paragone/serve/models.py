"""The models of a server: by name, loaded at the start or when they are asked for, within a limit of
memory."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paragone import limits
from paragone.checkpoint.checkpoint import open_checkpoint
from paragone.engine.load import known_format, load_tokenizer
from paragone.engine.resources import available_memory_bytes
from paragone.errors import ParagoneError
from paragone.model.families import spec_of
from paragone.model.precision import estimate_bytes, stored_precision
from paragone.serve.errors import ApiError, engine_unavailable
from paragone.serve.link import EngineLink
from paragone.serve.logs import Log
from paragone.serve.messages import Load, Loaded, LoadFailed
from paragone.serve.settings import file_settings
from paragone.serve.tool_formats import GENERIC, ToolFormat, format_of
from paragone.text.tokenizer import Tokenizer


@dataclass
class ServedModel:
    """A model that may be asked for. What is read from its files comes before the engine has it."""

    name: str
    path: Path
    known_as: str  # the catalogue's name, for what it knows of prompt formats
    precision: str | None
    created: int = field(default_factory=lambda: int(time.time()))
    tokenizer: Tokenizer | None = None
    context: int = 0
    vocab_size: int = 0
    cache_bytes: int = 0  # that were asked for, or that one context takes
    bytes: int = 0  # of weights and cache
    defaults: Mapping[str, Any] = field(default_factory=dict)
    tools: ToolFormat = GENERIC
    loaded: Loaded | None = None
    loading: "asyncio.Future[None] | None" = None
    used: float = 0.0
    requests: int = 0  # that need it now

    def described(self) -> dict[str, Any]:
        """As /v1/models says it."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "paragone",
            "root": self.known_as,
            "parent": None,
            "max_model_len": self.context,
            "loaded": self.loaded is not None,
        }


class Models:
    """Loads what is asked for and unloads what was not used for longest. All methods run on the event
    loop."""

    def __init__(
        self,
        link: EngineLink,
        served: list[ServedModel],
        options: dict[str, int | bool | None],
        log: Log,
        *,
        max_model_len: int | None = None,
        memory_bytes: int | None = None,
        keep_packed: bool = False,
    ) -> None:
        self.link, self.log = link, log
        self._models = {model.name: model for model in served}
        self._options, self._max_len = options, max_model_len
        self._memory, self._keep_packed = memory_bytes, keep_packed
        self._room = asyncio.Lock()
        link.on_loaded, link.on_down, link.on_up = self._on_loaded, self._on_down, self._on_up
        self._again: list[ServedModel] = []  # those that the engine had when it ended

    def __iter__(self) -> Any:
        return iter(self._models.values())

    def get(self, name: str) -> ServedModel:
        """Raises ApiError where there is none of that name."""
        if name not in self._models:
            known = ", ".join(self._models)
            raise ApiError(404, "model_not_found", f"there is no model {name!r}; there are: {known}", "model")
        return self._models[name]

    async def described(self, name: str) -> ServedModel:
        """A model with what its files say. Raises ApiError where they cannot be read."""
        model = self.get(name)
        if model.tokenizer is None:
            try:
                await asyncio.to_thread(self._read, model)
            except ParagoneError as err:
                self.log.event("model_unreadable", level="error", model=name, error=str(err))
                raise ApiError(500, "model_unreadable", f"the files of model {name} cannot be read") from None
        return model

    def _read(self, model: ServedModel) -> None:
        checkpoint = open_checkpoint(model.path)
        spec = spec_of(checkpoint)
        tensors = checkpoint.tensors.values()
        precision: Any = model.precision or stored_precision(tensors)
        tokenizer = load_tokenizer(checkpoint)
        known_format(tokenizer, model.known_as)
        model.context = min(spec.max_position_embeddings, self._max_len or spec.max_position_embeddings)
        model.vocab_size = spec.vocab_size
        model.cache_bytes = int(self._options.get("kv_cache_bytes") or spec.kv_bytes(model.context, 2))
        model.bytes = estimate_bytes(spec, precision, tensors) + model.cache_bytes
        model.defaults = file_settings(checkpoint)
        model.tools = format_of(tokenizer.chat_template)
        model.tokenizer = tokenizer

    @contextmanager
    def kept(self, name: str) -> Iterator[None]:
        """The model is not unloaded as long as the context lasts. Raises ApiError where there is none."""
        model = self.get(name)
        model.requests += 1
        try:
            yield
        finally:
            model.requests -= 1

    async def use(self, name: str) -> ServedModel:
        """A model that the engine has, loaded now if need be. Raises ApiError where that fails."""
        model = await self.described(name)
        while model.loaded is None:
            if model.loading is None:
                await self._load(model)
            if model.loading is not None:
                try:
                    async with asyncio.timeout(limits.LOAD_SECONDS):
                        await asyncio.shield(model.loading)
                except TimeoutError:
                    raise _unavailable(model) from None
        model.used = time.monotonic()
        return model

    async def _load(self, model: ServedModel) -> None:
        async with self._room:
            if model.loaded is not None or model.loading is not None:
                return
            if not self.link.up:
                raise engine_unavailable()
            self._make_room(model)
            self._begin(model)

    @staticmethod
    def _promise() -> "asyncio.Future[None]":
        """That a model will be there. Somebody may have stopped waiting for it when it fails."""
        made: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        made.add_done_callback(lambda done: done.cancelled() or done.exception())
        return made

    def _begin(self, model: ServedModel) -> None:
        model.loading = model.loading or self._promise()
        options = self._options
        if self._memory is not None:  # without it an engine takes a share of what the machine has
            options = options | {"kv_cache_bytes": model.cache_bytes}
        self.link.load(
            Load(
                model.name,
                str(model.path),
                model.known_as,
                model.precision,
                self._max_len,
                self._keep_packed,
                options,
            )
        )

    def _make_room(self, wanted: ServedModel) -> None:
        """Unloads what nobody uses, the longest unused first, until there is memory. Raises ApiError where
        that is not enough."""
        have = [m for m in self if m.loaded is not None or m.loading is not None]
        idle = sorted((m for m in have if m.loaded and not m.requests), key=lambda m: m.used)
        # What is being loaded has not taken its memory yet, and what is unloaded has not given its back.
        free = available_memory_bytes() - sum(m.bytes for m in have if m.loading is not None)
        if self._memory is not None:
            free = self._memory - sum(m.bytes for m in have)
        if wanted.bytes > free + sum(m.bytes for m in idle):  # unloading them all would not be enough
            message = f"model {wanted.name} needs {wanted.bytes / 1e9:.1f} GB beside those in use"
            raise ApiError(503, "out_of_memory", message, headers={"Retry-After": "10"})
        while wanted.bytes > free:
            gone = idle.pop(0)
            gone.loaded = None
            free += gone.bytes
            self.link.unload(gone.name)
            self.log.event("model_unloaded", model=gone.name, reason="memory")

    def _on_loaded(self, message: Loaded | LoadFailed) -> None:
        model = self._models[message.model]
        waiting, model.loading = model.loading, None
        if isinstance(message, Loaded):
            model.loaded, model.used = message, time.monotonic()
            model.context, model.vocab_size = message.context, message.vocab_size
            model.bytes = message.weight_bytes + message.cache_bytes
            self.log.event("model_loaded", model=model.name, seconds=round(message.seconds, 2),
                           cache=message.description)  # fmt: skip
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
            return
        self.log.event("model_failed", level="error", model=model.name, error=message.error)
        if waiting is not None and not waiting.done():
            waiting.set_exception(_unavailable(model))

    def _on_down(self) -> None:
        """What was being loaded may be what ended the engine: it is loaded again only if it is asked for."""
        self._again = [m for m in self if m.loaded is not None]
        self.fail_loading()
        for model in self._again:
            model.loaded, model.loading = None, self._promise()

    def fail_loading(self) -> None:
        """Whoever waits for a model is told that it does not come."""
        for model in self:
            waiting, model.loading = model.loading, None
            if waiting is not None and not waiting.done():
                waiting.set_exception(_unavailable(model))

    def _on_up(self) -> None:
        """Loads again what the engine had."""
        for model in self._again:
            self._begin(model)
        self._again = []


def _unavailable(model: ServedModel) -> ApiError:
    message = f"model {model.name} could not be loaded: the server's log says why"
    return ApiError(503, "model_unavailable", message)
