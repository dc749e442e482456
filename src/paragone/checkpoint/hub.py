"""A model hub: whole repositories into a folder, or only what tells about a model."""

import errno
import fnmatch
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paragone.checkpoint import store
from paragone.checkpoint.gguf import read_gguf
from paragone.checkpoint.sources import HubSource
from paragone.errors import MalformedData, NotFound, ParagoneError, Refused, Unavailable, WriteFailed

# What a folder of safetensors needs to run. Pickled weights and code are never fetched, nor are copies of the
# weights in other layouts ("consolidated").
WEIGHTS = "model*.safetensors"
HUB_FILES = [WEIGHTS, "*.json", "tokenizer.model", "*.tiktoken", "*.jinja"]
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
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
            source.repo, revision=revision, allow_patterns=names, local_dir=folder, max_workers=4
        )
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return {s.rfilename: _checked(folder / s.rfilename, s, f"hf:{source.repo}") for s in wanted}


def pull_headers(folder: Path, source: HubSource) -> Path:
    """What tells about a model without its weights: settings and tokenizer, and of the weight files their
    headers, the rest being a hole of the same length. Returns the folder, or the GGUF file in it."""
    from huggingface_hub import HfApi, hf_hub_download

    target = folder
    with _hub_errors(source, folder):
        revision, wanted = _files(source)
        for sibling in wanted:
            name = sibling.rfilename
            if name.endswith(".safetensors"):
                found = HfApi().parse_safetensors_file_metadata(source.repo, name, revision=revision)
                _write_header(folder / name, found, sibling.size or 0)
            elif name.endswith(".gguf"):
                target = folder / name
                _write_gguf_header(target, source, str(revision), sibling.size or 0)
            else:
                hf_hub_download(source.repo, name, revision=revision, local_dir=folder)
    return target


def _files(source: HubSource) -> tuple[str | None, list[Any]]:
    """The commit, and the files of it that are the model."""
    from huggingface_hub import HfApi

    what = f"hf:{source.repo}"
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
    return info.sha, [s for f, s in siblings.items() if any(fnmatch.fnmatchcase(f, p) for p in HUB_FILES)]


def _write_header(target: Path, found: Any, size: int) -> None:
    """A safetensors file of so many bytes of which only the header is there."""
    header: dict[str, Any] = {"__metadata__": found.metadata} if found.metadata else {}
    for name, tensor in found.tensors.items():
        offsets = list(tensor.data_offsets)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
    end = max((tensor.data_offsets[1] for tensor in found.tensors.values()), default=0)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (size - end - 8 - len(text))
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)


def _write_gguf_header(target: Path, source: HubSource, revision: str, size: int) -> None:
    """A GGUF file of which only the metadata are there: as much of it as they turn out to be."""
    from huggingface_hub import HfFileSystem

    target.parent.mkdir(parents=True, exist_ok=True)
    count = GGUF_FIRST_BYTES
    path = f"{source.repo}@{revision}/{source.file}"
    with HfFileSystem().open(path, "rb", block_size=1 << 20) as remote, target.open("wb") as out:
        while True:
            out.write(remote.read(min(count, size) - out.tell()))
            out.flush()
            have = out.tell()
            out.truncate(size)
            try:
                read_gguf(target)
                return
            except MalformedData:
                if have >= min(size, GGUF_MOST_BYTES):
                    raise
                count *= 2


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
