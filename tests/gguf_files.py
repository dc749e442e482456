"""Builds GGUF files byte by byte, right and wrong ones."""

import struct
from pathlib import Path
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {
    U8: "B",
    I8: "b",
    U16: "H",
    I16: "h",
    U32: "I",
    I32: "i",
    F32: "f",
    BOOL: "B",
    U64: "Q",
    I64: "q",
    F64: "d",
}


def string(text: str | bytes, length: int | None = None) -> bytes:
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data) if length is None else length) + data


def value(kind: int, item: Any) -> bytes:
    if kind == STRING:
        return string(item)
    if kind == ARRAY:
        inner, items = item
        return struct.pack("<IQ", inner, len(items)) + b"".join(value(inner, i) for i in items)
    return struct.pack("<" + FORMATS[kind], item)


def entry(key: str | bytes, kind: int, item: Any) -> bytes:
    return string(key) + struct.pack("<I", kind) + value(kind, item)


def tensor_info(name: str, dims: tuple[int, ...], code: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, code, offset)


def gguf(
    entries: list[bytes],
    infos: list[bytes],
    data: bytes,
    *,
    version: int = 3,
    num_keys: int | None = None,
    num_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    head = b"GGUF" + struct.pack(
        "<IQQ",
        version,
        len(infos) if num_tensors is None else num_tensors,
        len(entries) if num_keys is None else num_keys,
    )
    body = head + b"".join(entries) + b"".join(infos)
    return body + b"\0" * (-len(body) % max(alignment, 1)) + data


def small(extra: list[bytes] | None = None) -> bytes:
    """A right file with two metadata keys and two tensors."""
    entries = [
        entry("general.architecture", STRING, "llama"),
        entry("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "bc", "d"])),
        *(extra or []),
    ]
    infos = [tensor_info("x", (32, 2), 0, 0), tensor_info("y", (64,), 8, 256)]
    return gguf(entries, infos, b"\1" * (256 + 68))


def write(folder: Path, data: bytes, name: str = "m.gguf") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path
