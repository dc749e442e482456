"""The models on this machine: one folder each, complete or not there at all.

A download goes to `.partial/NAME/SOURCE`, under a lock, and is moved to its place in one step once every file
has its size and hash; what `manifest.json` lists is what was checked, and nothing else is there.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from paragone import paths
from paragone.checkpoint.jsonfile import read_json
from paragone.errors import MalformedData, NotFound, ParagoneError, UsageError, WriteFailed

MANIFEST = "manifest.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

Progress = Callable[[str, int, int | None], None]  # (what, bytes done, bytes in all or None)


@dataclass(frozen=True)
class StoredModel:
    """A complete model in the store. `files` maps names to [bytes, SHA-256 or null]."""

    name: str
    source: str
    pulled: str
    files: dict[str, tuple[int, str | None]]

    @property
    def folder(self) -> Path:
        return paths.models_dir() / self.name

    @property
    def path(self) -> Path:
        """What `open_checkpoint` takes: the GGUF file, or the folder."""
        ggufs = [f for f in self.files if f.endswith(".gguf")]
        return self.folder / ggufs[0] if len(ggufs) == 1 else self.folder

    @property
    def bytes(self) -> int:
        return sum(size for size, _ in self.files.values())


def check_name(name: str) -> str:
    """The name, or UsageError where it could lead outside the store."""
    if not NAME.fullmatch(name):
        raise UsageError(f"{name[:60]!r} is no name for a model: letters, digits, '.', '_' and '-'")
    return name


def stored_models() -> list[StoredModel]:
    """Every complete model, by name."""
    folder = paths.models_dir()
    if not folder.is_dir():
        return []
    names = sorted(p.name for p in folder.iterdir() if (p / MANIFEST).is_file())
    out = []
    for name in names:
        with contextlib.suppress(MalformedData):  # named when it is asked for
            if model := find_stored(name):
                out.append(model)
    return out


def find_stored(name: str) -> StoredModel | None:
    """A complete model by name, or None. Raises MalformedData where its files are not as recorded."""
    if not NAME.fullmatch(name):
        return None
    folder = paths.models_dir() / name
    if not (folder / MANIFEST).is_file():
        return None
    manifest = read_json(folder / MANIFEST)
    try:
        files = {str(k): (int(size), sha) for k, (size, sha) in manifest["files"].items()}
        model = StoredModel(name, str(manifest["source"]), str(manifest["pulled"]), files)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise MalformedData(f"{folder / MANIFEST}: damaged; `paragone rm {name}` and pull again") from None
    for file, (size, _) in model.files.items():
        path = folder / file
        if not path.is_file() or path.stat().st_size != size:
            raise MalformedData(f"{path}: is not as pulled; `paragone rm {name}` and pull again")
    return model


def remove(name: str) -> int:
    """Deletes a model and what is left of a download of it. Returns the bytes freed."""
    check_name(name)
    found, freed = False, 0
    for folder in (paths.models_dir() / name, partial_dir(name)):
        if folder.is_dir():
            found = True
            freed += sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
            shutil.rmtree(folder)
    if not found:
        here = ", ".join(m.name for m in stored_models()) or "none"
        raise NotFound(f"no model {name!r} on this machine. Here: {here}.")
    return freed


def partial_dir(name: str, source: str | None = None) -> Path:
    """Where downloads of this name, or its download from one source, are on their way. What another source
    left behind is never mixed in."""
    folder = paths.models_dir() / ".partial" / name
    return folder if source is None else folder / hashlib.sha256(source.encode()).hexdigest()[:16]


@contextlib.contextmanager
def locked(name: str, progress: Progress) -> Iterator[None]:
    """Only one process at a time pulls a model of this name; others wait and then find it there."""
    from filelock import FileLock, Timeout

    folder = paths.models_dir() / ".partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{check_name(name)}.lock")
        try:
            lock.acquire(timeout=0.2)
        except Timeout:
            progress(f"waiting for another pull of {name}", 0, None)
            lock.acquire()
    except OSError as err:
        raise WriteFailed(f"{folder}: cannot be written: {err.strerror or err}") from None
    try:
        yield
    finally:
        lock.release()


def commit(name: str, folder: Path, source: str, pulled: str, hashes: dict[str, str | None]) -> StoredModel:
    """Makes a finished download the model of this name, in one step. A model of that name that was there
    before stays until then."""
    target = paths.models_dir() / check_name(name)
    try:
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir():
                with contextlib.suppress(OSError):  # not empty
                    path.rmdir()
            elif str(path.relative_to(folder)) not in hashes:
                path.unlink()
        files = {f: ((folder / f).stat().st_size, sha) for f, sha in sorted(hashes.items())}
        manifest = {"source": source, "pulled": pulled, "files": files}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for file in (*files, MANIFEST):
            _sync(folder / file)
        before = partial_dir(name) / "before"
        if target.exists():
            shutil.rmtree(before, ignore_errors=True)
            target.replace(before)
        try:
            folder.replace(target)
        except OSError:
            if before.exists():
                before.replace(target)
            raise
        _sync(target.parent)
        shutil.rmtree(partial_dir(name), ignore_errors=True)
    except OSError as err:
        raise WriteFailed(f"{target}: cannot be written: {err.strerror}") from None
    model = find_stored(name)
    if model is None:
        raise ParagoneError(f"{target}: vanished while it was written")
    return model


def _sync(path: Path) -> None:
    """Waits until a file or folder is on the disk, so that a power cut cannot leave a hole in it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def need_space(folder: Path, needed: int, what: str) -> None:
    """Raises WriteFailed before anything is written where the disk has too little room."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as err:
        raise WriteFailed(f"{folder}: cannot be written: {err.strerror}") from None
    if free < needed:
        raise WriteFailed(
            f"{what} needs {needed / 1e9:.1f} GB on disk, {free / 1e9:.1f} GB are free under {folder}"
        )


def describe(model: StoredModel) -> dict[str, object]:
    """The manifest's content with the name, for machine-readable listings."""
    return asdict(model) | {"bytes": model.bytes, "path": str(model.path)}
