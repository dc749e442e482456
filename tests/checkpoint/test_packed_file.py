"""Packed weights on disk: what is mapped is what was made, and what does not fit is made anew."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from paragone.checkpoint.checkpoint import open_checkpoint
from paragone.checkpoint.packed_file import folder, read_packed, sweep
from paragone.cli.main import run
from paragone.errors import MalformedData
from paragone.model import read as reading
from paragone.model.forward import Reader
from paragone.model.kept import as_kept, as_packed
from paragone.model.load import load_decoder
from paragone.ops.hadamard import MOST_WIDTH
from paragone.ops.packed import PackedMatrix, Packing
from tests.checkpoint.test_gptq import write
from tests.parity.test_families import ids_of
from tests.tiny import CASES


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PARAGONE_HOME", str(tmp_path / "home"))


@pytest.fixture
def nothing_is_made(monkeypatch):
    """From here on whoever packs a matrix fails."""

    def forbid():
        def fail(*_):
            raise AssertionError("a matrix was packed")

        for made in ("fill", "repacked"):
            monkeypatch.setattr(reading.Parameters, made, fail)

    return forbid


def case(name, path):
    next(case for case in CASES if case.name == name).save(path)
    return path


def load(path, precision="int4", keep=True):
    return load_decoder(open_checkpoint(path), precision, keep_packed=keep)


@torch.inference_mode()
def logits_of(decoder):
    ids = ids_of(decoder, batch=1, length=20)[0].tolist()
    text = Reader(decoder, 20)
    return text.logits(text.read(ids, 20))[0]


def kept_files():
    return sorted(folder().glob("*"))


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("name", ["llama2_gqa", "mixtral", "qwen2_tied", "gemma3"])
def test_the_next_load_maps_the_same_bytes(name, precision, tmp_path, nothing_is_made):
    path = case(name, tmp_path / "m")
    want = logits_of(load(path, precision, keep=False))
    assert not kept_files()
    assert torch.equal(logits_of(load(path, precision)), want)
    (file,) = kept_files()
    assert all(kept.panels.ctypes.data % 64 == 0 for kept in read_packed(file).values())
    nothing_is_made()
    assert torch.equal(logits_of(load(path, precision)), want)
    assert kept_files() == [file]


def test_the_order_of_inputs_is_kept(tmp_path, nothing_is_made):
    write(case("llama2_gqa", tmp_path / "from"), tmp_path / "m", "gptq_act", 4, 32)
    want = logits_of(load(tmp_path / "m", "int8"))
    nothing_is_made()
    again = load(tmp_path / "m", "int8")
    assert again.blocks[0].mlp.down.parts[0].order is not None
    assert torch.equal(logits_of(again), want)


@pytest.mark.parametrize(
    "wrong", [[0] * 64, list(range(1, 65)), list(range(63))], ids=["one", "behind", "fewer"]
)
def test_an_order_that_leads_elsewhere_is_not_taken(wrong):
    matrix = PackedMatrix(16, 64, Packing(8), order=torch.randperm(64).int())
    kept = as_kept(matrix)
    assert as_packed(kept, 16, 64) is not None
    assert as_packed(replace(kept, order=np.array(wrong, dtype=np.int32)), 16, 64) is None


@pytest.mark.parametrize("wrong", [[], [0] * 15, [0] * 15 + [128], [0] * 15 + [0.5], None])
def test_levels_that_are_none(wrong):
    matrix = PackedMatrix(16, 64, Packing(4, levels=tuple(range(-8, 8))))
    kept = as_kept(matrix)
    assert as_packed(kept, 16, 64).packing == matrix.packing
    changed = replace(kept, meaning=replace(kept.meaning, levels=wrong))
    found = as_packed(changed, 16, 64)
    assert found is None if wrong is not None else found.packing == Packing(4)


def test_other_weights_are_not_taken_for_these(tmp_path):
    path = case("llama1", tmp_path / "m")
    load(path)
    next(c for c in CASES if c.name == "llama1").save(path, seed=1)
    os.utime(path / "model.safetensors", ns=(1, 1))
    assert torch.equal(logits_of(load(path)), logits_of(load(path, keep=False)))
    assert len(kept_files()) == 1  # what nobody can use any more is gone


def cut(file):
    file.write_bytes(file.read_bytes()[:-64])


def empty(file):
    file.write_bytes(b"")


def change_meaning(**changed):
    def change(file):
        raw = file.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        meanings = json.loads(header["__metadata__"]["meanings"])
        for meaning in meanings.values():
            meaning.update(changed)
        header["__metadata__"]["meanings"] = json.dumps(meanings)
        text = json.dumps(header).encode().ljust(length + 64)
        file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])

    return change


def no_metadata(file):
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    del header["__metadata__"]
    file.write_bytes(
        length.to_bytes(8, "little") + json.dumps(header).encode().ljust(length) + raw[8 + length :]
    )


def change_words(suffix, word):
    """The first word of what every matrix has by a name becomes another."""

    def change(file):
        raw = bytearray(file.read_bytes())
        length = int.from_bytes(raw[:8], "little")
        for name, entry in json.loads(raw[8 : 8 + length]).items():
            if name.endswith(suffix):
                at = 8 + length + entry["data_offsets"][0]
                raw[at : at + 4] = word.to_bytes(4, "little")
        file.write_bytes(raw)

    return change


@pytest.mark.parametrize("precision", ["bf16", "int4"])
@pytest.mark.parametrize(
    "damage",
    [cut, empty, no_metadata, change_meaning(bits=8), change_meaning(rows=3), change_meaning(other=1)],
)  # fmt: skip
def test_what_is_damaged_is_made_anew(damage, precision, tmp_path, nothing_is_made):
    path = case("llama1", tmp_path / "m")
    want = logits_of(load(path, precision))
    (file,) = kept_files()
    damage(file)
    assert torch.equal(logits_of(load(path, precision)), want)
    nothing_is_made()
    assert torch.equal(logits_of(load(path, precision)), want)


def drop_a_word(file):
    """Of the outliers of every matrix, in what the file says of them."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    for name, entry in header.items():
        if name.endswith(".outliers"):
            entry["shape"][0] -= 1
            entry["data_offsets"][1] -= 4
    file.write_bytes(raw[:8] + json.dumps(header).encode().ljust(length) + raw[8 + length :])


@pytest.mark.parametrize(
    "damage", [drop_a_word, change_words(".outliers", 10**6), change_words(".lists", 10**9)]
)
def test_outliers_that_lead_elsewhere_are_made_anew(damage, tmp_path):
    path = case("llama1", tmp_path / "m")
    want = logits_of(load(path, "bf16"))
    (file,) = kept_files()
    before = file.read_bytes()
    damage(file)
    assert file.read_bytes() != before
    assert torch.equal(logits_of(load(path, "bf16")), want)
    assert file.read_bytes() == before


def test_a_full_disk_costs_a_warning(tmp_path, monkeypatch):
    path = case("llama1", tmp_path / "m")
    (tmp_path / "home").mkdir()
    folder().write_text("not a folder")
    with pytest.warns(UserWarning, match="packed weights are not kept"):
        decoder = load(path)
    assert torch.equal(logits_of(decoder), logits_of(load(path, keep=False)))


def test_they_go_with_their_model(tmp_path, capsys):
    path = case("llama1", tmp_path / "m")
    load(path)
    assert sweep() == 0
    assert len(kept_files()) == 1
    (path / "model.safetensors").unlink()
    run(["rm", "nothing-of-this-name"])
    assert not kept_files()
    assert "packed weights of models that are gone" in capsys.readouterr().out


def test_full_precision_keeps_nothing(tmp_path):
    path = case("llama1", tmp_path / "m")
    load(path, "fp32")
    assert not kept_files()


def test_on_a_real_model(smollm2_path, nothing_is_made, capsys):
    ask = ["generate", str(smollm2_path), "The capital of France is", "--max-tokens", "8", "--keep-packed"]
    assert run(ask) == 0
    first = capsys.readouterr().out
    nothing_is_made()
    assert run(ask) == 0
    assert capsys.readouterr().out == first
    assert np.prod([p.stat().st_size for p in kept_files()]) > 90e6


def test_what_is_too_wide_for_int8_is_said(tmp_path):
    """Its sums would not fit into 32 bits."""
    llama = next(c for c in CASES if c.name == "llama1")
    narrow = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    wide = replace(llama, options=llama.options | narrow | {"intermediate_size": MOST_WIDTH + 1})
    wide.save(tmp_path / "m")
    with pytest.raises(MalformedData, match=f"{MOST_WIDTH + 1} columns"):
        load(tmp_path / "m", "int8")
    assert load(tmp_path / "m", "int4").blocks[0].mlp.down.in_features == MOST_WIDTH + 1
