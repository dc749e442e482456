"""Pickles are never opened, code in repositories is never run: by every way in, also under `python -O`."""

import ast
import contextlib
import importlib
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import paragone
from paragone.checkpoint.checkpoint import open_checkpoint
from paragone.cli.main import run
from paragone.compare.candidates import parse_candidates
from paragone.engine.resolve import locate
from paragone.errors import ParagoneError, Refused


class Canary:
    """Does harm when unpickled, in one of several ways; each would leave the file `path`."""

    WAYS = ("open", "os.system", "exec", "subprocess", "eval")

    def __init__(self, path, way):
        self.path, self.way = str(path), way

    def __reduce__(self):
        code = f"open({self.path!r}, 'w')"
        return {
            "open": (open, (self.path, "w")),
            "os.system": (os.system, (f"touch {self.path}",)),
            "exec": (exec, (code,)),
            "subprocess": (subprocess.call, (["touch", self.path],)),
            "eval": (eval, (code,)),
        }[self.way]


def hostile_files(folder, canary):
    """120 files that do harm when unpickled, under every name that pickled weights go by; some are zipped,
    as torch.save does."""
    number = 0
    for way in Canary.WAYS:
        for protocol in range(6):
            payload = pickle.dumps(Canary(canary, way), protocol=protocol)
            for suffix in (".bin", ".pt", ".pth", ".ckpt"):
                path = folder / f"model{number}{suffix}"
                number += 1
                if number % 3:
                    path.write_bytes(payload)
                else:
                    with zipfile.ZipFile(path, "w") as archive:
                        archive.writestr("archive/data.pkl", payload)
                yield path


class Watch:
    """Counts what an unpickler or foreign code would do, while it is on."""

    EVENTS = ("pickle.", "os.system", "subprocess.Popen", "exec", "marshal.")

    def __init__(self):
        self.on, self.seen = False, []
        sys.addaudithook(self.hook)

    def hook(self, event, arguments):
        if self.on and event.startswith(self.EVENTS):
            self.seen.append((event, str(arguments)[:200]))

    def __enter__(self):
        self.on, self.seen = True, []
        return self

    def __exit__(self, *_):
        self.on = False


WATCH = Watch()
SOURCE = Path(__file__).parents[2] / "src" / "paragone"


def test_the_package_has_no_unpickling_code():
    """Every file, by its syntax: no module that unpickles, no call that may."""
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 60
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            forbidden = {
                "pickle",
                "cPickle",
                "_pickle",
                "dill",
                "cloudpickle",
                "joblib",
                "shelve",
                "marshal",
                "jsonpickle",
            }
            assert not forbidden & {n.split(".")[0] for n in names}, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in (
                    "torch.load",
                    "torch.jit.load",
                    "np.load",
                    "numpy.load",
                    "eval",
                    "exec",
                ), path
                assert not any(k.arg in ("allow_pickle", "weights_only") for k in node.keywords), path


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
    files = list(hostile_files(tmp_path, canary))
    assert len(files) == 120
    importlib.import_module("paragone.kernels")  # what is imported late is imported now
    with contextlib.suppress(ParagoneError):
        ENTRY_POINTS[entry](tmp_path / "nothing")
    capsys.readouterr()
    with WATCH:
        for path in files:
            if entry == "cli":
                assert ENTRY_POINTS[entry](path) == 77
                assert "refusing to unpickle" in capsys.readouterr().err
            else:
                with pytest.raises(Refused, match="refusing to unpickle"):
                    ENTRY_POINTS[entry](path)
    assert not canary.exists()
    assert WATCH.seen == []


@pytest.mark.parametrize("entry", ENTRY_POINTS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.ckpt"])
def test_folders_with_only_pickles_are_refused(entry, name, tmp_path, capsys):
    canary = tmp_path / "canary"
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / name).write_bytes(pickle.dumps(Canary(canary, "open")))
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


PLACES = {  # where it is asked for: which file, and how deep inside
    "top": ("config.json", lambda m: {"model_type": "llama", **m}),
    "nested": ("config.json", lambda m: {"model_type": "llama", "text_config": m}),
    "deep": ("config.json", lambda m: {"model_type": "llama", "a": {"b": {"c": m}}}),
    "in_a_list": ("config.json", lambda m: {"model_type": "llama", "parts": [1, [m]]}),
    "tokenizer": ("tokenizer_config.json", lambda m: m),
}


def canary_repos(folder, canary):
    """40 repositories that ask for code of theirs to be run, and have it ready."""
    for place, (file, wrap) in PLACES.items():
        for number, auto_map in enumerate(AUTO_MAPS):
            repo = folder / f"{place}{number}"
            repo.mkdir()
            (repo / "config.json").write_text('{"model_type": "llama"}')
            (repo / file).write_text(json.dumps(wrap(auto_map)))
            for name in (
                "modeling",
                "configuration",
                "tokenization",
                "__init__",
                "setup",
                "conftest",
                "sitecustomize",
            ):
                (repo / f"{name}.py").write_text(f"open({str(canary)!r}, 'w')")
            (repo / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
            yield repo


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_remote_code_is_refused(entry, tmp_path, capsys, monkeypatch):
    canary = tmp_path / "canary"
    repos = list(canary_repos(tmp_path, canary))
    assert len(repos) == 40
    for repo in repos:
        monkeypatch.chdir(repo)  # as someone would who has just cloned it
        if entry == "cli":
            assert ENTRY_POINTS[entry](repo) == 77
            assert "remote code" in capsys.readouterr().err
        else:
            with pytest.raises(Refused, match="remote code"):
                ENTRY_POINTS[entry](repo)
    assert not canary.exists()


def test_refusals_hold_without_assertions(tmp_path):
    """`python -O` on all of them: no security depends on an assert."""
    canary = tmp_path / "canary"
    (tmp_path / "files").mkdir()
    targets = [*canary_repos(tmp_path, canary), *hostile_files(tmp_path / "files", canary)]
    script = (
        "import sys\nfrom paragone.cli.main import run\nassert False, 'not optimised'\n"
        "for line in sys.stdin:\n    print(run(['generate', line.strip(), 'hi']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-O", "-c", script],
        input="\n".join(map(str, targets)),
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["77"] * 160
    assert done.stderr.count("error: ") == 160
    assert "Traceback" not in done.stderr
    assert not canary.exists()


def test_no_flag_lets_remote_code_in(capsys):
    for command in ("generate", "chat", "compare", "pull"):
        assert run([command, "--help"]) == 0
        text = capsys.readouterr().out.lower()
        assert "trust" not in text
        assert "remote" not in text
