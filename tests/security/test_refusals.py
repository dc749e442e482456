"""Pickles are never opened, code in repositories is never run: by every way in, also under `python -O`."""

import json
import pickle
import subprocess
import sys
import zipfile

import pytest

import paragone
from paragone.checkpoint.checkpoint import open_checkpoint
from paragone.cli.main import run
from paragone.compare.candidates import parse_candidates
from paragone.engine.resolve import locate
from paragone.errors import Refused


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def hostile_files(folder, canary):
    """Files that do harm when unpickled, under every name that pickled weights go by."""
    payloads = [pickle.dumps(Canary(canary), protocol=p) for p in range(6)]
    for number, payload in enumerate(payloads):
        for suffix in (".bin", ".pt", ".pth", ".ckpt"):
            path = folder / f"model{number}{suffix}"
            path.write_bytes(payload)
            yield path
    zipped = folder / "pytorch_model.bin"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", payloads[2])
    yield zipped


ENTRY_POINTS = {
    "open": open_checkpoint,
    "load": lambda p: paragone.load(str(p)),
    "locate": lambda p: open_checkpoint(locate(str(p)).path),
    "candidates": lambda p: parse_candidates([str(p)], ["bf16"], lambda *_: None),
    "cli": lambda p: run(["generate", str(p), "x"]),
}


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_pickled_weights_are_refused(entry, tmp_path, capsys):
    canary = tmp_path / "canary"
    for path in hostile_files(tmp_path, canary):
        if entry == "cli":
            assert ENTRY_POINTS[entry](path) == 77
            assert "refusing to unpickle" in capsys.readouterr().err
        else:
            with pytest.raises(Refused, match="refusing to unpickle"):
                ENTRY_POINTS[entry](path)
    assert not canary.exists()


@pytest.mark.parametrize("entry", ENTRY_POINTS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.ckpt"])
def test_folders_with_only_pickles_are_refused(entry, name, tmp_path, capsys):
    canary = tmp_path / "canary"
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / name).write_bytes(pickle.dumps(Canary(canary)))
    if entry == "cli":
        assert ENTRY_POINTS[entry](folder) == 77
        assert name in capsys.readouterr().err
    else:
        with pytest.raises(Refused, match=name):
            ENTRY_POINTS[entry](folder)
    assert not canary.exists()


AUTO_MAPS = [
    {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}},
    {"auto_map": {"AutoConfig": "modeling.Config"}},
    {"auto_map": {"AutoTokenizer": ["modeling.Tokenizer", None]}},
    {"auto_map": {"AutoModel": "other/repo--modeling.Model"}},
    {"auto_map": {}},
    {"auto_map": None},
    {"auto_map": "modeling.Model"},
    {"auto_map": [], "trust_remote_code": True},
]


@pytest.mark.parametrize("entry", ENTRY_POINTS)
@pytest.mark.parametrize("number", range(len(AUTO_MAPS)))
def test_remote_code_is_refused(entry, number, tmp_path, capsys):
    canary = tmp_path / "canary"
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **AUTO_MAPS[number]}))
    code = f"open({str(canary)!r}, 'w')"
    for name in (
        "modeling.py",
        "configuration.py",
        "tokenization.py",
        "__init__.py",
        "setup.py",
        "conftest.py",
    ):
        (folder / name).write_text(code)
    (folder / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    if entry == "cli":
        assert ENTRY_POINTS[entry](folder) == 77
        assert "remote code" in capsys.readouterr().err
    else:
        with pytest.raises(Refused, match="remote code"):
            ENTRY_POINTS[entry](folder)
    assert not canary.exists()


def test_refusals_hold_without_assertions(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "auto_map": {"AutoModel": "m.M"}}')
    (tmp_path / "x.bin").write_bytes(pickle.dumps(1))
    for target in (tmp_path, tmp_path / "x.bin"):
        command = [sys.executable, "-O", "-m", "paragone", "generate", str(target), "hi"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 77
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr


def test_no_flag_lets_remote_code_in(capsys):
    for command in ("generate", "chat", "compare", "pull"):
        assert run([command, "--help"]) == 0
        text = capsys.readouterr().out.lower()
        assert "trust" not in text
        assert "remote" not in text
