"""From what a user names to a model on disk: a path, a model in the store, or a source to pull from."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from paragone.catalog.catalog import CatalogModel, models, unknown_model
from paragone.checkpoint import store
from paragone.checkpoint.hub import pull_headers
from paragone.checkpoint.pull import pull
from paragone.checkpoint.sources import HubSource, local_name, parse_source
from paragone.checkpoint.store import Progress
from paragone.errors import NotFound, ParagoneError, Unavailable


@dataclass(frozen=True)
class Located:
    """A model on disk: what to call it, where it lies, and what the catalogue knows of it."""

    name: str
    path: Path
    entry: CatalogModel | None = None
    is_remote: bool = False  # only its headers are here, and not for long


def locate(text: str) -> Located:
    """A model that is on this machine. Raises NotFound, saying how to get it where that is known."""
    if not text.startswith(("hf:", "pypi:")):
        try:
            path = Path(text).expanduser()
            exists = path.exists()
        except (OSError, RuntimeError, ValueError) as err:  # too long, no such user, a NUL inside
            raise NotFound(f"{text[:80]!r} is no path and no model: {err}") from None
        if exists:
            return Located(path.stem if path.is_file() else path.resolve().name, path)
    source = parse_source(text)
    name = local_name(source) if source else text
    if found := store.find_stored(name):
        return Located(name, found.path, models().get(name))
    if source:
        raise NotFound(f"{text} is not on this machine: `paragone pull {text}`")
    if name in models():
        raise NotFound(f"{name} is not on this machine: `paragone pull {name}`")
    if "/" in text or text.endswith((".gguf", ".safetensors")):
        raise NotFound(f"{text}: no such file or folder")
    raise unknown_model(text, [m.name for m in store.stored_models()])


@contextmanager
def peek(text: str) -> Iterator[Located]:
    """A model to look at: one that is here, or the headers of one on a hub, which are gone afterwards."""
    try:
        found = locate(text)
    except NotFound:
        entry = models().get(text)
        uris = [text] if text.startswith("hf:") else [s.uri for s in entry.sources] if entry else []
        hubs = [source for uri in uris if isinstance(source := parse_source(uri), HubSource)]
        if not hubs:
            raise
        with tempfile.TemporaryDirectory(prefix="paragone-") as folder:
            yield Located(text, pull_headers(Path(folder), hubs[0]), entry, is_remote=True)
        return
    yield found


def fetch(text: str, progress: Progress, *, force: bool = False) -> Located:
    """A model on this machine, pulled first if it has to be. Catalogue sources are tried in order."""
    if not force:
        try:
            return locate(text)
        except NotFound:
            if not parse_source(text) and text not in models():
                raise
    source = parse_source(text)
    if source:
        name = local_name(source)
        return Located(name, pull(name, source, text, progress, force=force).path)
    entry = models().get(text)
    if entry is None:
        raise unknown_model(text, [m.name for m in store.stored_models()])
    problems: list[ParagoneError] = []
    for candidate in entry.sources:
        remote = parse_source(candidate.uri)
        if remote is None:
            continue
        try:
            model = pull(
                entry.name,
                remote,
                candidate.uri,
                progress,
                file=candidate.file,
                sha256=candidate.sha256,
                size=candidate.bytes,
                download_size=candidate.download_bytes,
                force=force,
            )
            return Located(entry.name, model.path, entry)
        except (Unavailable, NotFound) as err:
            problems.append(err)
    if problems:
        raise problems[0]
    raise NotFound(
        f"{entry.title} has no open download: {', '.join(entry.licence.asks)} ({entry.licence.url})"
    )
