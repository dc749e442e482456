"""The safetensors reader: single, sharded, and every way a file can be wrong."""

import json
import struct
import time

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from paragone.checkpoint.safetensors import read_folder, read_safetensors
from paragone.errors import MalformedData, NotFound, Refused


def file_of(header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def tensor(shape=(2,), start=0, stop=8, dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


GOOD = file_of({"a": tensor(), "b": tensor((2, 2), 8, 24)}, b"\1" * 24)

BAD = {
    "empty": b"",
    "seven_bytes": b"\0" * 7,
    "length_only": struct.pack("<Q", 10),
    "length_zero": struct.pack("<Q", 0),
    "length_beyond_file": file_of({"a": tensor()}, b"\0" * 8, 1 << 20),
    "length_100mb": struct.pack("<Q", 100_000_001) + b"{}",
    "length_max": struct.pack("<Q", (1 << 64) - 1) + b"{}",
    "not_json": file_of(b"hello world"),
    "array": file_of(b"[]"),
    "not_utf8": file_of(b'{"\xff": 1}'),
    "no_brace": file_of(b' {"a": 1}'),
    "deep": file_of(b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "missing_field": file_of({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8),
    "unknown_dtype": file_of({"a": tensor(dtype="F99")}, b"\0" * 8),
    "negative_shape": file_of({"a": tensor((-2,))}, b"\0" * 8),
    "float_shape": file_of({"a": tensor((2.5,))}, b"\0" * 8),
    "shape_overflow": file_of({"a": tensor((1 << 62, 1 << 62))}, b"\0" * 8),
    "shape_mismatch": file_of({"a": tensor((3,))}, b"\0" * 8),
    "offsets_reversed": file_of({"a": tensor(start=8, stop=0)}, b"\0" * 8),
    "offsets_beyond": file_of({"a": tensor((4,), 0, 16)}, b"\0" * 8),
    "offsets_huge": file_of({"a": tensor((2,), (1 << 63), (1 << 63) + 8)}, b"\0" * 8),
    "gap": file_of({"a": tensor(), "b": tensor((2,), 16, 24)}, b"\0" * 24),
    "overlap": file_of({"a": tensor(), "b": tensor((2,), 4, 12)}, b"\0" * 12),
    "trailing_data": file_of({"a": tensor()}, b"\0" * 9),
    "data_missing": file_of({"a": tensor()}, b""),
    "metadata_not_text": file_of({"__metadata__": {"a": 1}, "a": tensor()}, b"\0" * 8),
    "three_offsets": file_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}}, b"\0" * 8),
    "unsupported_dtype": file_of({"a": tensor((2,), 0, 16, "I64")}, b"\0" * 16),
    "zip": b"PK\3\4" + b"\0" * 60,
    "pickle": b"\x80\x04\x95" + b"\0" * 60,
    "gguf": b"GGUF\3\0\0\0" + b"\0" * 60,
    "empty_shape_zero": file_of({"a": tensor((0,), 0, 0)}),
}


def read(tmp_path, data):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    return read_safetensors(path)


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_name(name, tmp_path):
    begin = time.monotonic()
    with pytest.raises(
        MalformedData, match=r"model\.safetensors: .+ \((header|tensor .+)\)|the file is empty"
    ):
        read(tmp_path, BAD[name])
    assert time.monotonic() - begin < 1


def test_truncation_at_every_byte(tmp_path):
    for size in range(len(GOOD)):
        with pytest.raises(MalformedData):
            read(tmp_path, GOOD[:size])


def test_agrees_with_the_library_on_mutations(tmp_path):
    """Accept and reject as the reference does, but for what is not supported here."""
    rng = np.random.default_rng(0)
    path = tmp_path / "m.safetensors"
    accepted = 0
    for _ in range(3000):
        data = bytearray(GOOD)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(0, len(data))] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            with safe_open(str(path), framework="np") as file:
                names = set(file.keys())
        except SafetensorError:
            names = None
        try:
            ours = set(read_safetensors(path))
            assert ours == names
            accepted += 1
        except MalformedData as err:
            assert names is None or "not supported" in str(err) or "not usable" in str(err)
    assert accepted > 100


def test_values_and_types(tmp_path):
    tensors = {
        "f32": torch.randn(3, 4),
        "f16": torch.randn(3, 4).half(),
        "bf16": torch.randn(3, 4).bfloat16(),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    stored = read_folder(tmp_path)
    assert torch.equal(torch.from_numpy(stored["f32"].rows()), tensors["f32"])
    assert torch.equal(torch.from_numpy(stored["f16"].rows(1, 2)), tensors["f16"][1:2])
    assert torch.equal(torch.from_numpy(stored["bf16"].rows()).view(torch.bfloat16), tensors["bf16"])


def sharded(tmp_path, weight_map):
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "two.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


def test_shards(tmp_path):
    folder = sharded(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    assert set(read_folder(folder)) == {"a", "b"}


@pytest.mark.parametrize(
    ("weight_map", "error", "message"),
    [
        ({"a": "one.safetensors", "b": "three.safetensors"}, NotFound, "missing: pull again"),
        ({"a": "one.safetensors", "c": "one.safetensors"}, MalformedData, "'c' is missing"),
        ({"a": "../one.safetensors"}, MalformedData, "not the name"),
        ({"a": "/etc/passwd"}, MalformedData, "not the name"),
        ({"a": "two.safetensors"}, MalformedData, "is not where"),
        ({"a": 3}, MalformedData, "weight_map"),
        ({"a": "x" * 300 + ".safetensors"}, MalformedData, "not the name"),
        ({"a": "pytorch_model-00001-of-00002.bin"}, Refused, "refusing to unpickle"),
        ([], MalformedData, "weight_map"),
    ],
)
def test_bad_indexes(weight_map, error, message, tmp_path):
    with pytest.raises(error, match=message):
        read_folder(sharded(tmp_path, weight_map))
