"""A tensor as it lies in a file: its name, shape and stored type, read by rows without copying the file."""

import mmap
import os
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paragone.checkpoint.gguf_blocks import Groups
from paragone.checkpoint.gguf_types import BlockType
from paragone.errors import MalformedData, NotFound


@dataclass(frozen=True)
class MappedFile:
    """A file mapped read-only. Pages are read when touched and can be dropped again."""

    path: Path
    buffer: mmap.mmap
    descriptor: int

    @classmethod
    def open(cls, path: Path) -> "MappedFile":
        """Maps `path`; NotFound or ParagoneError say why it cannot be."""
        try:
            with path.open("rb") as file:
                # A private map: arrays over it count as writable, which torch wants, but are not written.
                buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
                mapped = cls(path, buffer, os.dup(file.fileno()))
        except FileNotFoundError:
            raise NotFound(f"{path}: no such file") from None
        except ValueError:  # what mmap makes of a file without content
            raise MalformedData(f"{path}: the file is empty (byte 0)") from None
        except OSError as err:
            raise NotFound(f"{path}: cannot be opened: {err.strerror}") from None
        weakref.finalize(mapped, os.close, mapped.descriptor)
        return mapped

    @property
    def size(self) -> int:
        return len(self.buffer)

    def forget(self) -> None:
        """Lets the pages that were read leave the process. They stay in the system's cache, if it has room.

        All of them, not one tensor's: systems map files in large pieces, so that reading the next tensor
        would bring the last one's end back.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            self.buffer.madvise(mmap.MADV_DONTNEED)

    def read(self, places: Iterable[int], nbytes: int) -> NDArray[np.uint8]:
        """Pieces of `nbytes` (N, nbytes) from anywhere, without their pages: mapping a piece takes several
        times as long as reading it. Raises MalformedData where the file has become shorter."""
        pieces = [os.pread(self.descriptor, nbytes, place) for place in places]
        if any(len(piece) != nbytes for piece in pieces):
            raise MalformedData(f"{self.path}: the file has become shorter since it was read: load it again")
        return np.frombuffer(bytearray().join(pieces), dtype=np.uint8).reshape(-1, nbytes)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint file. `shape` is row-major; a scalar counts as one row."""

    name: str
    shape: tuple[int, ...]
    type: BlockType
    file: MappedFile
    offset: int  # bytes from the start of the file
    nbytes: int
    # Of the whole tensor, or of each matrix of a stack, stored beside it.
    factors: tuple[float, ...] = field(default=(1.0,), kw_only=True)

    @property
    def num_rows(self) -> int:
        """Rows are the first of two or more dimensions; a vector is one row."""
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def factor(self) -> float:
        """What all of a matrix is multiplied by, beyond what its blocks say."""
        (factor,) = self.factors
        return factor

    @property
    def order(self) -> NDArray[np.int32] | None:
        """The inputs in the order that `groups` gives them in, where it is another than that of `rows`."""
        return None

    @property
    def address(self) -> int:
        """Where it begins in memory; good for as long as its file is mapped."""
        return int(np.frombuffer(self.file.buffer, dtype=np.uint8).ctypes.data) + self.offset

    def rows(self, start: int = 0, stop: int | None = None) -> NDArray[np.generic]:
        """Rows [start, stop) as float32, float16, or uint16 holding bfloat16 bits (type BF16).

        Dense types are views of the file; quantised types are dequantised to float32.
        """
        return self._numbers(self._raw_rows()[start : self.num_rows if stop is None else stop])

    def gather(self, ids: NDArray[np.int64]) -> NDArray[np.generic]:
        """The rows with these numbers, as `rows` gives them. Only their pages are read."""
        return self._numbers(self._raw_rows()[ids])

    def read_rows(self, ids: Iterable[int]) -> NDArray[np.generic]:
        """The same of a few rows, read without touching the map."""
        nbytes = self.nbytes // self.num_rows
        return self._numbers(self.file.read((self.offset + i * nbytes for i in ids), nbytes))

    def groups(self, ids: NDArray[np.int64]) -> Groups:
        """The rows with these numbers, of a quantised type, taken apart: q (n, groups, g), scale and minimum
        (n, groups)."""
        assert self.type.unpack is not None  # noqa: S101 -- callers ask only of quantised types
        raw = self._raw_rows()[ids]
        groups = self.type.unpack(raw.reshape(-1, self.type.type_size))
        n, size = len(ids), groups.q.shape[-1]
        minimum = None if groups.minimum is None else groups.minimum.reshape(n, -1)
        scale = groups.scale.reshape(n, -1)
        return Groups(groups.q.reshape(n, -1, size), scale * np.float32(self.factor), minimum)

    def _raw_rows(self) -> NDArray[np.uint8]:
        raw = np.frombuffer(self.file.buffer, dtype=np.uint8, count=self.nbytes, offset=self.offset)
        return raw.reshape(self.num_rows, -1)

    def _numbers(self, raw: NDArray[np.uint8]) -> NDArray[np.generic]:
        shape = (len(raw), *self.shape[1:]) if len(self.shape) > 1 else self.shape
        if self.type.unpack is not None:
            return self.type.dequantize(raw).reshape(shape) * np.float32(self.factor)
        dense = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[self.type.name]
        return raw.reshape(-1).view(dense).reshape(shape)
