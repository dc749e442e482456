"""Loads a model, doing what needs no torch while torch's libraries are being mapped.

Nothing here imports torch at the top: its import is most of the time until the first token.
"""

import contextlib
import ctypes
import importlib.util
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from paragone import collector_paused
from paragone.catalog.catalog import models
from paragone.checkpoint.checkpoint import Checkpoint, open_checkpoint
from paragone.engine.resources import available_memory_bytes
from paragone.errors import BadConfiguration, NotEnoughMemory, UsageError
from paragone.model.families import spec_of
from paragone.model.precision import Precision, check_precision, estimate_bytes, stored_precision
from paragone.text.formats import use_format
from paragone.text.tokenizer import Tokenizer, tokenizer_from_folder, tokenizer_from_gguf

if TYPE_CHECKING:
    from paragone.engine.model import Model

MADV_DONTNEED = 4


def load_model(
    path: Path,
    name: str,
    precision: Precision | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    prompt_format: str | None = None,
    *,
    keep_packed: bool = False,
) -> "Model":
    """Loads the model at a path. The tokenizer is read first: it is cheap and may fail. `precision` None is
    what the file has; `prompt_format` names a built-in one to use instead of the model's own template;
    `keep_packed` keeps the weights on disk as the kernels take them, for the next time."""
    if precision is not None:
        check_precision(precision)
    checkpoint = open_checkpoint(path)
    precision = precision or stored_precision(checkpoint.tensors.values())
    map_torch()
    tokenizer = load_tokenizer(checkpoint)
    if prompt_format is None:
        known_format(tokenizer, name)
    else:
        use_format(tokenizer, prompt_format)
    with collector_paused():
        from paragone.engine.model import Model
        from paragone.model.load import load_decoder
    check_device(device)
    need = estimate_bytes(spec_of(checkpoint), precision, checkpoint.tensors.values())
    if device == "cpu" and need > (have := available_memory_bytes()):
        raise NotEnoughMemory(
            f"{name} at {precision} needs about {need / 1e9:.1f} GB for its weights, "
            f"{have / 1e9:.1f} GB are available: take a lower precision or a smaller model"
        )
    decoder = load_decoder(checkpoint, precision, device, progress, keep_packed=keep_packed)
    release_startup_code()
    return Model(name, path, precision, checkpoint, decoder, tokenizer)


def map_torch() -> None:
    """Begins to map torch's libraries, half a gigabyte, on a thread of their own, so that importing torch
    finds them there. Where they are not as expected, the import does it all."""
    if "torch" in sys.modules or not sys.platform.startswith("linux"):
        return
    found = importlib.util.find_spec("torch")
    for folder in (found and found.submodule_search_locations) or ():
        threading.Thread(target=_map, args=(Path(folder) / "lib" / "libtorch_python.so",)).start()


def _map(library: Path) -> None:
    with contextlib.suppress(OSError):
        ctypes.CDLL(str(library))


def release_startup_code() -> None:
    """Lets go of the pages of torch's code that only its start has run, 100 MB and more where the system maps
    files in large pieces. What is needed again comes back from the system's cache."""
    if not sys.platform.startswith("linux"):
        return
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    maps = Path("/proc/self/maps")
    if madvise is None or not maps.exists():
        return
    for line in maps.read_text().splitlines():
        # Code only: it is the file's own, never written to, and so never lost.
        if "/libtorch_" in line and line.split()[1] == "r-xp":
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)


def check_device(device: str) -> None:
    """Raises UsageError for a device that torch does not know or that is not here."""
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as err:
        reason = str(err).splitlines()[0][:120]
        raise UsageError(f"device {device!r} cannot be used: {reason}") from None


def known_format(tokenizer: Tokenizer, name: str) -> str | None:
    """Gives a tokenizer without a template the prompt format that the catalogue knows for a model's name.
    Returns that format's name."""
    if tokenizer.chat_template is None and (entry := models().get(name)) and entry.prompt_format:
        with contextlib.suppress(BadConfiguration):  # another model of that name, without the control tokens
            use_format(tokenizer, entry.prompt_format)
            return entry.prompt_format
    return None


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer that belongs to a checkpoint."""
    if checkpoint.dialect == "gguf":
        return tokenizer_from_gguf(checkpoint.config, checkpoint.path)
    value = checkpoint.config.get("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    return tokenizer_from_folder(checkpoint.path, [i for i in ids if isinstance(i, int)])
