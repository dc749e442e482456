"""The GGUF reader: values against the `gguf` package, and every way a file can be wrong."""

import gc
import math
import os
import random
import struct

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize

from paragone.checkpoint.gguf import read_gguf
from paragone.checkpoint.gguf_types import TYPES
from paragone.errors import MalformedData, NotFound
from tests import gguf_files as g

QUANTISED = [t for t in TYPES if t.unpack is not None]


def bits(values):
    """Bit patterns, with every NaN made the same: its sign is not part of the answer."""
    return np.where(np.isnan(values), np.float32(np.nan), values).view(np.uint32)


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda t: t.name)
def test_dequantised_bits_equal_the_gguf_package(kind):
    rng = np.random.default_rng(kind.code)
    raw = rng.integers(0, 256, (512, 3 * kind.type_size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        want, got = dequantize(raw, gguf.GGMLQuantizationType(kind.code)), kind.dequantize(raw)
    if kind.name == "IQ1_S":  # three numbers and a minimum, which have no infinities and no zero below zero
        there = np.isfinite(want) & (want != 0)
        assert there.mean() > 0.9
        want, got = want[there], got[there]
    np.testing.assert_array_equal(bits(got), bits(want))


def test_one_block_by_hand():
    """Q4_1: weight = d * q + m, low nibbles first."""
    block = np.frombuffer(struct.pack("<ee", 0.5, -1.0) + bytes(range(16)), dtype=np.uint8)
    kind = next(t for t in TYPES if t.name == "Q4_1")
    want = [0.5 * (b & 15) - 1 for b in range(16)] + [0.5 * (b >> 4) - 1 for b in range(16)]
    assert kind.dequantize(block[None]).tolist() == [want]


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda t: t.name)
def test_unpacked_parts_multiply_out_to_the_weights(kind):
    rng = np.random.default_rng(1)
    raw = rng.integers(0, 60, (64, kind.type_size), dtype=np.uint8)  # small bytes: finite scales
    parts = kind.unpack(raw)
    weights = parts.scale[..., None] * parts.q.astype(np.float32)
    if parts.minimum is not None:
        weights = weights + parts.minimum[..., None]
    np.testing.assert_array_equal(weights.reshape(64, -1), kind.dequantize(raw))


def test_reads_what_the_gguf_package_writes(tmp_path):
    path = tmp_path / "w.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a.u32", 7)
    writer.add_float32("a.f32", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_array("a.words", ["x", "yé", ""])
    writer.add_array("a.numbers", [1, 2, 3])
    dense = np.arange(96, dtype=np.float32).reshape(3, 32)
    writer.add_tensor("dense", dense)
    writer.add_tensor("half", dense.astype(np.float16))
    quantised = gguf.quants.quantize(dense, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(path)
    assert file.metadata["a.u32"] == 7
    assert file.metadata["a.f32"] == 0.5
    assert file.metadata["a.bool"] is True
    assert file.metadata["a.words"] == ["x", "yé", ""]
    assert file.metadata["a.numbers"].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(file.tensors["dense"].rows(), dense)
    np.testing.assert_array_equal(file.tensors["half"].rows(1, 3), dense[1:3])
    np.testing.assert_array_equal(
        file.tensors["q"].rows(), dequantize(quantised, gguf.GGMLQuantizationType.Q8_0)
    )
    np.testing.assert_array_equal(
        file.tensors["q"].gather(np.array([2, 0, 2])), file.tensors["q"].rows()[[2, 0, 2]]
    )
    for name in ("dense", "half", "q"):
        rows = file.tensors[name].read_rows([2, 0, 2])
        np.testing.assert_array_equal(rows, file.tensors[name].rows()[[2, 0, 2]])


def test_a_file_that_has_become_shorter(tmp_path):
    """Rows that are read while a model runs are missed by name; a map would end the process."""
    path = g.write(tmp_path, g.small())
    tensor = read_gguf(path).tensors["x"]
    rows = tensor.read_rows([1, 0])
    os.truncate(path, tensor.offset + tensor.nbytes - 8)
    np.testing.assert_array_equal(tensor.read_rows([0]), rows[1:])
    with pytest.raises(MalformedData, match=f"{path.name}: the file has become shorter"):
        tensor.read_rows([1])


def test_files_are_closed_with_their_maps(tmp_path):
    path = g.write(tmp_path, g.small())
    descriptor = read_gguf(path).tensors["x"].file.descriptor
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(NotFound):
        read_gguf(tmp_path / "no.gguf")
    with pytest.raises(MalformedData):
        read_gguf(g.write(tmp_path, b""))


BIG = (1 << 63, (1 << 64) - 1, 1 << 40, 1 << 32)


def malformed(rng: random.Random) -> dict[str, bytes]:
    """One file of every wrong kind; the seed moves sizes and places."""
    big, n = rng.choice(BIG), rng.randrange(1, 9)
    base = g.small()
    ok = g.entry("general.architecture", g.STRING, "llama")
    info = g.tensor_info

    def with_info(*infos: bytes, data: int = 4096) -> bytes:
        return g.gguf([ok], list(infos), b"\0" * data)

    def with_entry(entry: bytes) -> bytes:
        return g.gguf([ok, entry], [], b"")

    def with_factor(data: bytes, count: int = 1, code: int = 0) -> bytes:
        matrix = info("t.weight", (64, 2), 40, 0)
        return g.gguf([ok], [matrix, info("t.scale", (count,), code, 96)], b"\1" * 96 + data + b"\0" * 64)

    return {
        "magic": b"GGML" + base[4:],
        "no_magic": rng.randbytes(64),
        "version_0": g.gguf([ok], [], b"", version=0),
        "version_1": g.gguf([ok], [], b"", version=1),
        "version_future": g.gguf([ok], [], b"", version=4 + n),
        "big_endian": g.gguf([ok], [], b"", version=3 << 24),
        "key_count": g.gguf([ok], [], b"", num_keys=big),
        "key_count_one_more": g.gguf([ok], [], b"", num_keys=2),
        "tensor_count": g.gguf([ok], [], b"", num_tensors=big),
        "tensor_count_one_more": g.gguf([ok], [], b"", num_tensors=1),
        "key_length": g.gguf([g.string(b"k", big)], [], b"\0" * 64, num_keys=1),
        "key_empty": with_entry(g.entry("", g.U8, 1)),
        "key_twice": with_entry(ok),
        "key_not_utf8": with_entry(g.entry(b"\xff\xfe", g.U8, 1)),
        "value_type": with_entry(g.string("k") + struct.pack("<IQ", 13 + n, 0)),
        "value_string_length": with_entry(g.string("k") + struct.pack("<I", g.STRING) + g.string("v", big)),
        "value_not_utf8": with_entry(g.entry("k", g.STRING, b"\xc3(")),
        "bool_two": with_entry(g.entry("k", g.BOOL, 1 + n)),
        "array_type": with_entry(g.string("k") + struct.pack("<IIQ", g.ARRAY, 99, 1)),
        "array_count": with_entry(g.string("k") + struct.pack("<IIQ", g.ARRAY, g.U8, big)),
        "array_of_strings_count": with_entry(g.string("k") + struct.pack("<IIQ", g.ARRAY, g.STRING, big)),
        "array_of_strings_short": with_entry(g.string("k") + struct.pack("<IIQ", g.ARRAY, g.STRING, 9) + g.string("a")),
        "array_of_bools": with_entry(g.entry("k", g.ARRAY, (g.U8, [1] * n))[:-n].replace(
            struct.pack("<I", g.U8) + struct.pack("<Q", n), struct.pack("<I", g.BOOL) + struct.pack("<Q", n)) + b"\7" * n),
        "array_deep": with_entry(g.string("k") + struct.pack("<I", g.ARRAY) + struct.pack("<IQ", g.ARRAY, 1) * 64),
        "arrays_many": with_entry(g.string("k") + struct.pack("<IIQ", g.ARRAY, g.ARRAY, 70_000)
            + struct.pack("<IQ", g.U8, 0) * 70_000),
        "alignment_zero": g.gguf([ok, g.entry("general.alignment", g.U32, 0)], [], b""),
        "alignment_13": g.gguf([ok, g.entry("general.alignment", g.U32, 13)], [], b""),
        "alignment_huge": g.gguf([ok, g.entry("general.alignment", g.U32, 1 << 31)], [], b""),
        "alignment_text": g.gguf([ok, g.entry("general.alignment", g.STRING, "32")], [], b""),
        "dims_none": with_info(info("t", (), 0, 0)),
        "dims_five": with_info(info("t", (2, 2, 2, 2, 2), 0, 0)),
        "dims_many": with_info(g.string("t") + struct.pack("<I", (1 << 32) - 1)),
        "dim_zero": with_info(info("t", (32, 0), 0, 0)),
        "dim_overflow": with_info(info("t", (big, big, 4), 0, 0)),
        "dim_overflow_to_small": with_info(info("t", (1 << 62, 8), 0, 0)),
        "size_beyond_file": with_info(info("t", (32, 1 << 20), 0, 0)),
        "type_unknown": with_info(info("t", (32,), 200 + n, 0)),
        "type_unsupported": with_info(info("t", (256,), 28, 0)),
        "type_removed": with_info(info("t", (32,), 4, 0)),
        "factors_of_a_matrix": with_factor(struct.pack("<4f", 1, 1, 1, 1), 1 + n),
        "factor_in_half": with_factor(struct.pack("<e", 1), 1, 1),
        "factor_of_nothing": with_factor(struct.pack("<f", rng.choice([0, -1, 1e-40]))),
        "factor_without_size": with_factor(struct.pack("<f", rng.choice([math.inf, math.nan]))),
        "row_not_blocks": with_info(info("t", (31 + 32 * n, 2), 8, 0)),
        "offset_unaligned": with_info(info("t", (32,), 0, n)),
        "offset_beyond_file": with_info(info("t", (32,), 0, 1 << 40)),
        "offset_overflow": with_info(info("t", (32,), 0, (1 << 64) - 32)),
        "name_twice": with_info(info("t", (32,), 0, 0), info("t", (32,), 0, 128)),
        "overlap": with_info(info("t", (64,), 0, 0), info("u", (64,), 0, 128)),
        "truncated_data": base[: -1 - n],
        "truncated_directory": base[: 100 + n],
        "name_not_utf8": g.gguf([ok], [g.string(b"\xff") + struct.pack("<IQIQ", 1, 32, 0, 0)], b"\0" * 128),
    }  # fmt: skip


@pytest.mark.parametrize("kind", malformed(random.Random(0)))
def test_malformed_kinds_are_refused_by_name_and_place(kind, tmp_path):
    for seed in range(64):
        path = g.write(tmp_path, malformed(random.Random(seed))[kind])
        with pytest.raises(MalformedData, match=r"m\.gguf: .+ \(byte \d+\)"):
            read_gguf(path)


def test_the_small_file_is_right(tmp_path):
    file = read_gguf(g.write(tmp_path, g.small()))
    assert set(file.tensors) == {"x", "y"}


def test_truncation_at_every_byte(tmp_path):
    whole = g.small()
    for size in range(len(whole)):
        with pytest.raises(MalformedData):
            read_gguf(g.write(tmp_path, whole[:size]))


def test_boundary_integers_at_every_place(tmp_path):
    """Any 4 or 8 bytes replaced by a boundary value: read in bounds or refused, never anything else."""
    whole = g.small([g.entry("n", g.ARRAY, (g.U16, [1, 2, 3])), g.entry("general.alignment", g.U32, 32)])
    values4 = [0, 1, 2, 4, 7, 9, 13, 31, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE]
    values8 = [0, 1, 31, 1 << 20, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 32]
    tried = refused = 0
    for at in range(4, len(whole) - 330):
        for width, values in (("<I", values4), ("<Q", values8)):
            for value in values:
                data = bytearray(whole)
                struct.pack_into(width, data, at, value)
                path = g.write(tmp_path, bytes(data))
                tried += 1
                try:
                    for tensor in read_gguf(path).tensors.values():
                        assert np.prod(tensor.shape) * 0 == 0
                        assert tensor.offset + tensor.nbytes <= len(data)
                except MalformedData:
                    refused += 1
    assert tried > 5000
    assert refused > tried // 4
