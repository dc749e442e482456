"""A model hub: whole repositories into a folder, or only what tells about a model."""

import errno
import fnmatch
import glob
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paragone import limits
from paragone.checkpoint import store
from paragone.checkpoint.gguf import read_gguf
from paragone.checkpoint.sources import HubSource
from paragone.errors import (
    MalformedData,
    NotFound,
    ParagoneError,
    Refused,
    Unavailable,
    UsageError,
    WriteFailed,
)

# What a folder of safetensors needs to run. Pickled weights and code are never fetched, nor are copies of the
# weights in other layouts ("consolidated").
WEIGHTS = "model*.safetensors"
HUB_FILES = [WEIGHTS, "*.json", "tokenizer.model", "*.tiktoken", "*.jinja"]
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
COPY_BYTES = 1 << 22
GGUF_FIRST_BYTES, GGUF_MOST_BYTES = 1 << 24, 1 << 27  # metadata that are fetched, at first and at most


def pull_from_hub(folder: Path, source: HubSource, name: str) -> dict[str, str | None]:
    """Downloads a repository's model, or one GGUF file of it. Returns the SHA-256 of every file.

    Raises Refused, NotFound, Unavailable, MalformedData where a hash is wrong, WriteFailed.
    """
    from huggingface_hub import snapshot_download

    with _hub_errors(source, folder):
        revision, wanted = _files(source)
        store.need_space(folder, sum(s.size or 0 for s in wanted), name)
        names = [s.rfilename for s in wanted]
        snapshot_download(
            source.repo,
            revision=revision,
            allow_patterns=[glob.escape(n) for n in names],
            local_dir=folder,
            max_workers=4,
        )
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return {s.rfilename: _checked(folder / s.rfilename, s, f"hf:{source.repo}") for s in wanted}


def pull_headers(folder: Path, source: HubSource) -> Path:
    """What tells about a model without its weights: settings and tokenizer, and of the weight files their
    headers, the rest being a hole of the same length. Returns the folder, or the GGUF file in it."""
    from huggingface_hub import HfFileSystem, hf_hub_download

    target = folder
    with _hub_errors(source, folder):
        revision, wanted = _files(source)
        for sibling in wanted:
            name, size = sibling.rfilename, sibling.size or 0
            if not name.endswith((".safetensors", ".gguf")):
                hf_hub_download(source.repo, name, revision=revision, local_dir=folder)
                continue
            path = f"{source.repo}@{revision}/{name}"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (
                HfFileSystem().open(path, "rb", cache_type="none") as far,
                (folder / name).open("w+b") as near,
            ):
                if name.endswith(".gguf"):
                    target = folder / name
                    _copy_gguf_head(far, near, size, target)
                else:
                    _copy(far, near, min(8, size))
                    near.seek(0)
                    length = int.from_bytes(near.read(8), "little")
                    if length <= min(limits.SAFETENSORS_HEADER_BYTES, size - 8):  # or its reader complains
                        _copy(far, near, 8 + length)
                    near.truncate(size)
    return target


def _copy(far: Any, near: Any, length: int) -> None:
    """Goes on copying until `length` bytes are here."""
    near.seek(far.tell())
    while far.tell() < length:
        data = far.read(min(COPY_BYTES, length - far.tell()))
        if not data:
            raise Unavailable(f"{near.name}: the hub sent {far.tell()} bytes, not {length}")
        near.write(data)
    near.flush()


def _copy_gguf_head(far: Any, near: Any, size: int, path: Path) -> None:
    """As much of a GGUF file as its metadata turn out to be, and the tensors that are a part of them."""
    count = GGUF_FIRST_BYTES
    while True:
        _copy(far, near, min(count, size))
        near.truncate(size)
        try:
            found = read_gguf(path)
            break
        except MalformedData:
            if count >= min(size, GGUF_MOST_BYTES):
                raise
            count *= 2
    for name, tensor in found.tensors.items():
        if name.startswith("rope_f") and tensor.nbytes <= GGUF_FIRST_BYTES:
            far.seek(tensor.offset)
            _copy(far, near, tensor.offset + tensor.nbytes)


def _files(source: HubSource) -> tuple[str | None, list[Any]]:
    """The commit, and the files of it that are the model."""
    from huggingface_hub import HfApi

    what = f"hf:{source.repo}"
    if source.file and source.file.endswith(PICKLES):
        raise Refused(f"refusing to fetch pickled weights {source.file} of {what}; only safetensors and GGUF")
    if source.file and not source.file.endswith(".gguf"):
        raise UsageError(f"{what}:{source.file} names no GGUF file: {what} alone is the whole model")
    info = HfApi().model_info(source.repo, revision=source.revision, files_metadata=True)
    siblings = {s.rfilename: s for s in info.siblings or []}
    for name in siblings:
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise MalformedData(f"{what}: lists a file outside itself: {name[:80]!r}")
    if source.file:
        if source.file not in siblings:
            known = ", ".join(sorted(f for f in siblings if f.endswith(".gguf"))[:6]) or "no GGUF file"
            raise NotFound(f"{what}: has no file {source.file!r}. It has: {known}.")
        return info.sha, [siblings[source.file]]
    if not any(fnmatch.fnmatchcase(f, WEIGHTS) for f in siblings):
        pickles = [f for f in siblings if f.endswith(PICKLES)]
        if pickles:
            raise Refused(
                f"refusing to fetch pickled weights {pickles[0]} of {what}; only safetensors and GGUF"
            )
        raise NotFound(f"{what}: has no {WEIGHTS}; name a GGUF file as {what}:FILE")
    wanted = [s for name, s in siblings.items() if _is_part(name)]
    for sibling in wanted:
        if not sibling.rfilename.endswith(".safetensors") and (sibling.size or 0) > limits.TOKENIZER_BYTES:
            raise MalformedData(f"{what}: {sibling.rfilename} is larger than {limits.TOKENIZER_BYTES} bytes")
    return info.sha, wanted


def _is_part(name: str) -> bool:
    """Whether a file of a repository is needed: only those at its top are, and the store keeps a manifest of
    its own."""
    at_top = "/" not in name and name != store.MANIFEST
    return at_top and any(fnmatch.fnmatchcase(name, pattern) for pattern in HUB_FILES)


@contextmanager
def _hub_errors(source: HubSource, folder: Path) -> Iterator[None]:
    """Turns what the hub's library raises into errors of ours."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    what = f"hf:{source.repo}"
    try:
        yield
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


def _checked(path: Path, sibling: Any, what: str) -> str:
    """A file's SHA-256, which must be what the hub says, as its size must."""
    size = path.stat().st_size
    if sibling.size not in (None, size):
        path.unlink()
        raise MalformedData(f"{what}: {path.name} has {size} bytes, not {sibling.size}: pull again")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    expected = getattr(getattr(sibling, "lfs", None), "sha256", None)
    if expected and digest != expected:
        path.unlink()
        raise MalformedData(f"{what}: SHA-256 of {path.name} is wrong: pull again")
    return digest


def _reason(err: BaseException) -> str:
    return " ".join(str(err).split())[:160] or type(err).__name__
