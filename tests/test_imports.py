"""Imports point one way, and heavy libraries stay where they are needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "paragone"
# A package may import those that stand at its level or below, and itself.
LEVELS = {
    "cli": 7, "compare": 6, "serve": 6, "engine": 5, "model": 4, "quant": 3, "ops": 2, "kernels": 1, "checkpoint": 0, "text": 0, "catalog": 0,
}  # fmt: skip
SIDE = {"checkpoint", "text", "catalog"}
BASE = {"errors", "limits", "paths"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (
            name for name in names if name and name.split(".")[0] == "paragone" and name != "paragone"
        )


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way(path):
    package = path.relative_to(SOURCE).parts[0]
    for name in imports(path):
        target = name.split(".")[1]
        if package in LEVELS and target not in BASE and target != package and package not in SIDE:
            assert LEVELS[target] < LEVELS[package] or target in SIDE, name
        if package in SIDE and target not in BASE | {package}:
            # text reads JSON files and checkpoint's formats; nothing else crosses between these
            assert (package, target) == ("text", "checkpoint"), name


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from paragone.cli.main import run; run(['--help']);"
        "print([m for m in ('torch','numpy','rich','jinja2','huggingface_hub','tokenizers') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_what_is_checked_before_torch_is_mapped_imports_none_of_it():
    code = (
        "import sys; import paragone.engine.load, paragone.engine.config, paragone.cli.generate;"
        "print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"


def test_no_unpickling_code_anywhere():
    forbidden = ("pickle", "torch.load", "joblib", "dill", "marshal", "eval(", "exec(", "trust_remote_code")
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call):
                names = [ast.unparse(node.func) + "("]
            elif isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            for name in names:
                assert not any(name == f or name.startswith(f + ".") for f in forbidden), f"{path}: {name}"
