"""What the two processes say to each other: typed messages in MessagePack, a length before each.

A frame is four bytes of length (little-endian), then that many bytes. What is no message of these types ends
the connection: neither side guesses.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from paragone import limits
from paragone.engine.params import SamplingParams
from paragone.engine.request import TokenLogprobs
from paragone.errors import MalformedData

HEAD = 4  # bytes of a length
TOO_COMPLEX = "the grammar became too complex"  # how the error of such an answer begins

Logprob = tuple[int, float, tuple[tuple[int, float], ...]]  # token, its own, the most likely ones


class Load(msgspec.Struct, tag=True, frozen=True):
    """Load a model. `options` are fields of EngineConfig."""

    model: str
    path: str
    name: str
    precision: str | None
    max_model_len: int | None
    keep_packed: bool
    options: dict[str, int | bool | None]


class Unload(msgspec.Struct, tag=True, frozen=True):
    """Forget a model. Nothing of it runs any more."""

    model: str


class Submit(msgspec.Struct, tag=True, frozen=True):
    """Answer a prompt. `grammar` is llguidance's text of one; `params` are fields of SamplingParams."""

    request: int
    model: str
    prompt_ids: list[int]
    params: dict[str, Any]
    chat: bool
    stop: tuple[str, ...]
    show_special: bool
    grammar: str | None
    priority: int
    tenant: str


class Abort(msgspec.Struct, tag=True, frozen=True):
    """End a request now."""

    request: int


class Aborted(msgspec.Struct, tag=True, frozen=True):
    """A request that was to end has ended, whether or not there was anything of it."""

    request: int


class Begun(msgspec.Struct, tag=True, frozen=True):
    """The engine's process has begun. Comes once, before all else."""


class Loaded(msgspec.Struct, tag=True, frozen=True):
    """A model is ready, and what its memory is."""

    model: str
    context: int
    vocab_size: int
    weight_bytes: int
    cache_bytes: int
    capacity: int  # tokens in the cache
    description: str
    seconds: float


class LoadFailed(msgspec.Struct, tag=True, frozen=True):
    """A model could not be loaded."""

    model: str
    error: str


class Delta(msgspec.Struct, array_like=True, frozen=True):
    """What became certain of an answer. The last of an answer has a reason."""

    request: int
    choice: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[Logprob, ...] = ()
    reason: str | None = None
    error: str | None = None
    cached_tokens: int = 0
    seed: int | None = None
    prompt_logprobs: tuple[Logprob, ...] = ()


class State(msgspec.Struct, array_like=True, frozen=True):
    """An engine after a step; what is counted is counted from its beginning."""

    running: int
    waiting: int
    blocks_used: int
    blocks: int
    preemptions: int
    prefix_queries: int
    prefix_hits: int
    steps: int
    step_s: float
    resident_bytes: int


class Step(msgspec.Struct, tag=True, frozen=True):
    """What a step of a model's engine gave."""

    model: str
    deltas: tuple[Delta, ...]
    state: State


class Refused(msgspec.Struct, tag=True, frozen=True):
    """A request cannot run. `kind` is the error's class."""

    request: int
    kind: str
    error: str


ToEngine = Load | Unload | Submit | Abort
FromEngine = Begun | Loaded | LoadFailed | Step | Refused | Aborted

_encoder = msgspec.msgpack.Encoder()


def frame(message: ToEngine | FromEngine) -> bytes:
    """A message as it goes over the socket."""
    body = _encoder.encode(message)
    return len(body).to_bytes(HEAD, "little") + body


class Frames:
    """Bytes in, messages of one direction out."""

    def __init__(self, kind: Any) -> None:
        """`kind` is ToEngine or FromEngine."""
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages that are now complete. Raises MalformedData at the first that is none."""
        self._held += data
        at = 0
        try:
            while len(self._held) >= at + HEAD:
                size = int.from_bytes(self._held[at : at + HEAD], "little")
                if size > limits.MESSAGE_BYTES:
                    raise MalformedData(f"a message of {size} bytes, at most {limits.MESSAGE_BYTES}")
                if len(self._held) < at + HEAD + size:
                    break
                body = memoryview(self._held)[at + HEAD : at + HEAD + size]
                try:
                    message = self._decoder.decode(body)
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
                    raise MalformedData(f"no message: {err}") from None
                finally:
                    body.release()
                at += HEAD + size
                yield message
        finally:
            del self._held[:at]


def logprob_of(entry: TokenLogprobs) -> Logprob:
    """The wire's form of log-probabilities."""
    return entry.token_id, entry.logprob, entry.top


def params_to_wire(params: SamplingParams) -> dict[str, Any]:
    """The fields that differ from the defaults."""
    names = SamplingParams.__dataclass_fields__
    return {name: value for name in names if (value := getattr(params, name)) != names[name].default}


def params_from_wire(fields: dict[str, Any]) -> SamplingParams:
    """Raises UsageError naming the field that is wrong or unknown."""
    from paragone.errors import UsageError

    unknown = fields.keys() - SamplingParams.__dataclass_fields__.keys()
    if unknown:
        raise UsageError(f"unknown setting {', '.join(sorted(unknown))}")
    if isinstance(fields.get("logit_bias"), list):
        fields = fields | {"logit_bias": dict(fields["logit_bias"])}
    return SamplingParams(**fields)
