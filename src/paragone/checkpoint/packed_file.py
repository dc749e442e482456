"""Packed weights kept on disk, so that the next start maps them and neither reads nor packs the model.

A safetensors file in Paragone's own folder for each model and precision: panels as 32-bit words, at addresses
that are multiples of 64, and in its metadata what they mean and which files they were made of. It counts as
long as those are what they were; what does not is deleted by the next load that keeps weights, or by `rm`.
"""

import contextlib
import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paragone.checkpoint.safetensors import read_safetensors
from paragone.errors import ParagoneError
from paragone.paths import home

LAYOUT = 5  # counts up where panels change
ALIGNMENT = 64
# Of what some matrices have beside panels.
SUFFIXES = {"order": ".order", "lists": ".lists", "outliers": ".outliers"}


@dataclass(frozen=True)
class Meaning:
    """Of one matrix's panels; as ops/packed.py has it. Twelve bits: as ops/compressed.py. Where `whole_rows`
    have one scale: as ops/hadamard.py."""

    rows: int
    width: int
    bits: int
    has_minimum: bool
    fine: bool
    unit: float
    levels: tuple[int, ...] | None = None
    whole_rows: bool = False


@dataclass(frozen=True)
class Kept:
    """One matrix: its panels, the order of its inputs where it is its own, and of a compressed one its lists
    and outliers, as words of 32 bits."""

    meaning: Meaning
    panels: NDArray[np.uint8]
    order: NDArray[np.int32] | None = None
    lists: NDArray[np.int32] | None = None
    outliers: NDArray[np.int32] | None = None


def folder() -> Path:
    """Where they are kept."""
    return home() / "packed"


def packed_path(sources: Iterable[Path], precision: str) -> Path:
    """Where the weights made of these files are kept."""
    text = json.dumps([LAYOUT, precision, _states(sources)])
    return folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"


def _states(sources: Iterable[Path]) -> list[tuple[str, int, int]]:
    """What would be another if a file were."""
    found = [(path.resolve(), path.stat()) for path in sorted(sources)]
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in found]


def read_packed(path: Path) -> dict[str, Kept]:
    """The matrices of a file, in memory as far as they are used; none where there is no whole file."""
    if not path.is_file():
        return {}
    try:
        tensors, metadata = read_safetensors(path), _metadata(path)
        return {
            name: Kept(
                Meaning(**meaning),
                _bytes(tensors[name]),
                **{
                    field: _bytes(tensors[name + suffix]).view(np.int32).reshape(-1)
                    for field, suffix in SUFFIXES.items()
                    if name + suffix in tensors
                },
            )
            for name, meaning in json.loads(metadata["meanings"]).items()
        }
    except (ParagoneError, OSError, KeyError, TypeError, ValueError):
        return {}  # it is made anew


def _bytes(tensor: Any) -> NDArray[np.uint8]:
    raw = np.frombuffer(tensor.file.buffer, dtype=np.uint8, count=tensor.nbytes, offset=tensor.offset)
    return raw.reshape(*tensor.shape[:-1], -1)


def _metadata(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return dict(json.loads(file.read(length)).get("__metadata__", {}))


def write_packed(path: Path, matrices: Mapping[str, Kept], sources: Iterable[Path]) -> None:
    """Keeps the matrices that were made of these files, all or nothing. Raises OSError."""
    arrays = dict(_arrays(matrices))
    header: dict[str, Any] = {
        "__metadata__": {
            "sources": json.dumps(_states(sources)),
            "meanings": json.dumps({name: asdict(kept.meaning) for name, kept in matrices.items()}),
        }
    }
    at = 0
    for name, array in arrays.items():
        shape = [*array.shape[:-1], array.shape[-1] * array.itemsize // 4]
        header[name] = {"dtype": "I32", "shape": shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep()
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        try:
            file.write(struct.pack("<Q", len(text)) + text)
            for array in arrays.values():
                file.write(np.ascontiguousarray(array).data)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(file.name)
            raise


def _arrays(matrices: Mapping[str, Kept]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Panels first: each takes a multiple of 64 bytes."""
    for name, kept in matrices.items():
        yield name, kept.panels
    for name, kept in matrices.items():
        for field, suffix in SUFFIXES.items():
            if (array := getattr(kept, field)) is not None:
                yield name + suffix, array


def sweep() -> int:
    """Deletes what was made of files that are not any more what they were; how many bytes that frees."""
    freed = 0
    for path in folder().glob("*.safetensors"):
        try:
            states = json.loads(_metadata(path)["sources"])
            stale = [list(state) for state in _states(Path(state[0]) for state in states)] != states
        except (OSError, KeyError, TypeError, ValueError, IndexError, struct.error):
            stale = True
        if stale:
            with contextlib.suppress(OSError):
                freed += path.stat().st_size
                path.unlink()
    return freed
