"""Reads GGUF files: metadata and tensor directory, with every length checked before it is used.

Source: the GGUF specification, versions 2 and 3 (ggml/docs/gguf.md). All arithmetic is on Python's
unbounded integers, and every count is compared with the bytes that are left in the file before
anything of that size is made.
"""

import math
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from paragone import limits
from paragone.checkpoint.gguf_types import BY_CODE, UNSUPPORTED
from paragone.checkpoint.tensors import MappedFile, StoredTensor
from paragone.errors import MalformedData

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
BOOL, STRING, ARRAY = 7, 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", BOOL: "B", 10: "Q", 11: "q", 12: "d"}
# The least bytes that one metadata entry and one tensor entry can take.
LEAST_ENTRY_BYTES = 8 + 4 + 1
LEAST_TENSOR_BYTES = 8 + 4 + 4 + 8
SMALLEST_FACTOR = 2.0**-126  # of all weights of a matrix: the smallest number of full precision in float32


@dataclass(frozen=True)
class GGUFFile:
    """A GGUF file's metadata, as Python values, and its tensors by name."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]


class _Cursor:
    """A position in the file that cannot pass its end."""

    def __init__(self, file: MappedFile) -> None:
        self.file, self.at = file, 0
        self.view = memoryview(file.buffer)
        self.budget = {STRING: limits.GGUF_STRINGS, ARRAY: limits.GGUF_NESTED_ARRAYS}  # of the whole file

    def fail(self, reason: str, at: int | None = None) -> NoReturn:
        where = self.at if at is None else at
        raise MalformedData(f"{self.file.path}: {reason} (byte {where})")

    @property
    def left(self) -> int:
        return self.file.size - self.at

    def scalar(self, code: str) -> Any:
        size = struct.calcsize("<" + code)
        if size > self.left:
            self.fail(f"file ends inside a {size}-byte value")
        (value,) = struct.unpack_from("<" + code, self.view, self.at)
        self.at += size
        return value

    def string(self, what: str) -> str:
        length = self.scalar("Q")
        if length > self.left:
            self.fail(f"{what} says it has {length} bytes, {self.left} are left", self.at - 8)
        try:
            text = str(self.view[self.at : self.at + length], "utf-8")
        except UnicodeDecodeError as err:
            self.fail(f"{what} is not UTF-8: {err.reason}", self.at + err.start)
        self.at += length
        return text

    def strings(self, count: int, what: str) -> list[str]:
        """`count` strings. The loop is written out, for vocabularies have hundreds of thousands."""
        view, at, size = self.view, self.at, self.file.size
        unpack = struct.Struct("<Q").unpack_from
        out = []
        for _ in range(count):
            if at + 8 > size:
                self.fail(f"file ends inside {what}", at)
            end = at + 8 + unpack(view, at)[0]
            if end > size:
                self.fail(f"a string in {what} runs past the end of the file", at)
            try:
                out.append(str(view[at + 8 : end], "utf-8"))
            except UnicodeDecodeError as err:
                self.fail(f"a string in {what} is not UTF-8: {err.reason}", at + 8 + err.start)
            at = end
        self.at = at
        return out

    def value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind == STRING:
            return self.string(f"value of {key!r}")
        if kind == ARRAY:
            return self.array(key, depth)
        if kind not in SCALARS:
            self.fail(f"key {key!r} has unknown value type {kind}", self.at - 4)
        value = self.scalar(SCALARS[kind])
        if kind == BOOL:
            if value not in (0, 1):
                self.fail(f"key {key!r}: a bool is 0 or 1, not {value}", self.at - 1)
            return bool(value)
        return value

    def array(self, key: str, depth: int) -> Any:
        """A list of strings or of arrays; numbers are a numpy view of the file."""
        if depth >= limits.GGUF_ARRAY_DEPTH:
            self.fail(f"key {key!r}: arrays nested deeper than {limits.GGUF_ARRAY_DEPTH}")
        kind, count = self.scalar("I"), self.scalar("Q")
        least = 8 if kind == STRING else 12 if kind == ARRAY else 0
        if kind in SCALARS:
            least = struct.calcsize("<" + SCALARS[kind])
        elif not least:
            self.fail(f"key {key!r} has unknown array type {kind}", self.at - 12)
        if count * least > self.left:
            self.fail(f"key {key!r} says it has {count} items, {self.left} bytes are left", self.at - 8)
        if kind in self.budget:
            self.budget[kind] -= count
            if self.budget[kind] < 0:
                self.fail(f"key {key!r} has {count} items, which is too many", self.at - 8)
        if kind == STRING:
            return self.strings(count, f"array {key!r}")
        if kind == ARRAY:
            return [self.array(key, depth + 1) for _ in range(count)]
        dtype = np.dtype(SCALARS[kind]).newbyteorder("<")
        items = np.frombuffer(self.view, dtype=dtype, count=count, offset=self.at)
        self.at += count * least
        if kind == BOOL:
            if count and items.max() > 1:
                self.fail(f"key {key!r}: a bool is 0 or 1", self.at - count)
            return items.astype(bool)
        return items


def read_gguf(path: Path) -> GGUFFile:
    """Maps a GGUF file and checks its whole directory. Raises MalformedData naming file and byte."""
    file = MappedFile.open(path)
    cursor = _Cursor(file)
    if file.size < 24 or cursor.view[:4] != MAGIC:
        cursor.fail("not a GGUF file: it does not start with 'GGUF'", 0)
    cursor.at = 4
    version = cursor.scalar("I")
    if version not in (2, 3):
        swapped = " (a big-endian file?)" if version >= 1 << 16 else ""
        cursor.fail(f"GGUF version {version} is not supported, only 2 and 3{swapped}", 4)
    num_tensors, num_keys = cursor.scalar("Q"), cursor.scalar("Q")
    for count, most, least, what in (
        (num_keys, limits.GGUF_KEYS, LEAST_ENTRY_BYTES, "metadata keys"),
        (num_tensors, limits.GGUF_TENSORS, LEAST_TENSOR_BYTES, "tensors"),
    ):
        if count > most or count * least > cursor.left:
            cursor.fail(f"{count} {what} cannot be in a file of {file.size} bytes", 8)
    metadata = _read_metadata(cursor, num_keys)
    return GGUFFile(path, metadata, _read_directory(cursor, num_tensors, _alignment(cursor, metadata)))


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        at = cursor.at
        key = cursor.string("a metadata key")
        if not key or len(key) > 65_535:
            cursor.fail("a metadata key is empty or longer than 65,535 bytes", at)
        if key in metadata:
            cursor.fail(f"metadata key {key!r} is there twice", at)
        metadata[key] = cursor.value(cursor.scalar("I"), key)
    return metadata


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1) or alignment > 1 << 20:
        cursor.fail(f"general.alignment is {alignment!r}, not a power of two from 8 on")
    return alignment


def _read_directory(cursor: _Cursor, count: int, alignment: int) -> dict[str, StoredTensor]:
    entries = []
    for _ in range(count):
        at = cursor.at
        name = cursor.string("a tensor name")
        rank = cursor.scalar("I")
        if not 1 <= rank <= limits.GGUF_DIMENSIONS:
            cursor.fail(f"tensor {name!r} has {rank} dimensions, not 1 to {limits.GGUF_DIMENSIONS}", at)
        shape = tuple(cursor.scalar("Q") for _ in range(rank))[::-1]  # the file counts from the innermost
        entries.append((name, shape, cursor.scalar("I"), cursor.scalar("Q"), at))
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, StoredTensor] = {}
    for name, shape, code, offset, at in entries:
        if name in tensors:
            cursor.fail(f"tensor {name!r} is there twice", at)
        if code not in BY_CODE:
            known = UNSUPPORTED.get(code, "unknown")
            cursor.fail(f"tensor {name!r} has type {code} ({known}), which is not supported", at)
        kind = BY_CODE[code]
        weights = 1
        for dim in shape:
            weights *= dim
        if weights == 0:
            cursor.fail(f"tensor {name!r} has no elements: shape {list(shape)}", at)
        if shape[-1] % kind.block_size:
            cursor.fail(f"tensor {name!r}: rows of {shape[-1]} are not whole {kind.name} blocks", at)
        nbytes = weights // kind.block_size * kind.type_size
        if offset % alignment:
            cursor.fail(f"tensor {name!r}: offset {offset} is not a multiple of {alignment}", at)
        if start + offset + nbytes > cursor.file.size:
            have = max(cursor.file.size - start - offset, 0)
            cursor.fail(f"tensor {name!r} needs {nbytes} bytes, {have} are there: truncated?", at)
        tensors[name] = StoredTensor(name, shape, kind, cursor.file, start + offset, nbytes)
    _refuse_overlap(cursor, tensors)
    return _with_factors(cursor, tensors)


def _with_factors(cursor: _Cursor, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """NVFP4 weights with the numbers that llama.cpp stores beside them: `x.scale` is what all of `x.weight`
    is multiplied by, one for each matrix. `x.input_scale` is for inputs in four bits too, which are not used.
    """
    found = dict(tensors)
    for name, tensor in tensors.items():
        at = name.removesuffix(".weight")
        if tensor.type.name != "NVFP4" or at == name:
            continue
        found.pop(f"{at}.input_scale", None)
        beside = found.pop(f"{at}.scale", None)
        if beside is None:
            continue
        matrices = tensor.shape[0] if len(tensor.shape) > 2 else 1
        if beside.type.name != "F32" or beside.shape not in ((1,), (matrices,)):
            there = f"{list(beside.shape)} of {beside.type.name}"
            cursor.fail(f"tensor {beside.name!r} is {there}, not [1] or [{matrices}] of F32", beside.offset)
        factors = tuple(float(factor) for factor in beside.rows())
        for factor in factors:
            if not SMALLEST_FACTOR <= factor < math.inf:
                cursor.fail(f"tensor {beside.name!r} has {factor}, which scales no weights", beside.offset)
        found[name] = replace(tensor, factors=factors)
    return found


def _refuse_overlap(cursor: _Cursor, tensors: dict[str, StoredTensor]) -> None:
    end, previous = 0, ""
    for tensor in sorted(tensors.values(), key=lambda t: t.offset):
        if tensor.offset < end:
            cursor.fail(f"tensors {previous!r} and {tensor.name!r} overlap", tensor.offset)
        end, previous = tensor.offset + tensor.nbytes, tensor.name
