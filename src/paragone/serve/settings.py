"""The settings an answer is made with, and where each comes from: the request, the model's file, the default.

A model's file is its generation_config.json, or the `general.sampling.*` keys of a GGUF file. Nothing is
taken from anywhere else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paragone.checkpoint.checkpoint import Checkpoint
from paragone.checkpoint.jsonfile import read_json
from paragone.engine.params import LEAST_TEMPERATURE, SamplingParams
from paragone.errors import ParagoneError, UsageError
from paragone.serve.errors import ApiError
from paragone.serve.schemas import ChatRequest, CompletionRequest, Sampling

# OpenAI's, where the model's file says nothing.
DEFAULTS: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "n": 1,
    "min_tokens": 0,
    "ignore_eos": False,
    "skip_special_tokens": True,
}
# Field to its key in GGUF.
FILE_FIELDS = {
    "temperature": "temp",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions


@dataclass(frozen=True)
class Settings:
    """What a request's answers are made with; `origins` says where each value comes from."""

    params: SamplingParams
    show_special: bool
    origins: Mapping[str, tuple[Any, str]]

    def described(self) -> dict[str, dict[str, Any]]:
        """For the answer."""
        return {name: {"value": value, "from": origin} for name, (value, origin) in self.origins.items()}


def file_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The sampling fields that a model's file sets. What is no usable value is left out, and so the default
    counts: a foreign file must not make every request fail."""
    if checkpoint.dialect == "gguf":
        values = {f: checkpoint.config.get(f"general.sampling.{key}") for f, key in FILE_FIELDS.items()}
    else:
        path = checkpoint.path / "generation_config.json"
        found = read_json(path) if path.exists() else {}
        values = {field: found.get(field) for field in FILE_FIELDS}
        if found.get("do_sample") is False:
            values = {"temperature": 0.0}
    out = {}
    for field, value in values.items():
        if value is None:
            continue
        try:
            SamplingParams(**{field: value})
        except UsageError:
            continue
        out[field] = value
    return out


def resolve(
    request: Sampling,
    from_file: Mapping[str, Any],
    prompt_tokens: int,
    context: int,
    format_stop: Sequence[str] = (),
) -> Settings:
    """`format_stop` are texts that end an answer in the conversation's format. Raises ApiError naming the
    field where a value cannot be used."""
    origins: dict[str, tuple[Any, str]] = {}
    for field, default in DEFAULTS.items():
        asked = getattr(request, field)
        if asked is not None:
            origins[field] = asked, "request"
        elif field in from_file:
            origins[field] = from_file[field], "model's file"
        else:
            origins[field] = default, "default"
    if origins["top_k"][0] == -1:  # vLLM's word for all
        origins["top_k"] = 0, origins["top_k"][1]
    if 0 < origins["temperature"][0] < LEAST_TEMPERATURE:
        origins["temperature"] = 0.0, origins["temperature"][1]
    room = max(context - prompt_tokens, 1)
    most = _most_tokens(request)
    origins["max_tokens"] = (room, "context") if most is None or most > room else (most, "request")
    if most is None and isinstance(request, CompletionRequest):
        origins["max_tokens"] = min(COMPLETION_TOKENS, room), "default"
    stop = () if request.stop is None else (request.stop,) if isinstance(request.stop, str) else request.stop
    values = {name: value for name, (value, _) in origins.items()}
    show_special = not values.pop("skip_special_tokens")
    values |= {
        "max_tokens": max(values["max_tokens"], 1),  # of none the prompt's log-probabilities are wanted
        "stop": tuple(stop),
        "stop_token_ids": tuple(request.stop_token_ids or ()),
        "seed": None if request.seed is None else request.seed % (1 << 63),
        "logit_bias": {int(token): bias for token, bias in (request.logit_bias or {}).items()},
        "allowed_token_ids": request.allowed_token_ids,
        "logprobs": _logprobs(request),
        "prompt_logprobs": _logprobs(request) if getattr(request, "echo", None) else None,
    }
    for field in ("stop", "stop_token_ids", "seed", "logit_bias", "allowed_token_ids"):
        if getattr(request, field) is not None:
            origins[field] = getattr(request, field), "request"
    if format_stop:
        origins["format_stop"] = list(format_stop), "prompt format"
    try:
        params = SamplingParams(**values)
    except ParagoneError as err:
        text = str(err)
        known = next((f for f in SamplingParams.__dataclass_fields__ if text.startswith(f)), None)
        raise ApiError(400, "invalid_value", text, known) from None
    return Settings(params, show_special, origins)


def _most_tokens(request: Sampling) -> int | None:
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        return request.max_completion_tokens
    return request.max_tokens if isinstance(request, ChatRequest | CompletionRequest) else None


def _logprobs(request: Sampling) -> int | None:
    if isinstance(request, ChatRequest):
        if not request.logprobs:
            if request.top_logprobs:
                raise ApiError(400, "invalid_value", "top_logprobs needs logprobs: true", "top_logprobs")
            return None
        return request.top_logprobs or 0
    return request.logprobs if isinstance(request, CompletionRequest) else None
