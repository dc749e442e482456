"""Reads the catalogue: models by name, licences by name."""

import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from paragone.errors import NotFound

DEFAULT_MODELS = ("smollm2-135m-instruct", "gemma3-270m")


@dataclass(frozen=True)
class Licence:
    """What a licence allows and asks, in plain words. `commercial` is "yes", "conditions" or "no"."""

    name: str
    title: str
    url: str
    commercial: str
    asks: tuple[str, ...]


@dataclass(frozen=True)
class CatalogSource:
    """Where a model can be had: a source as `paragone pull` takes it, and what its file must be."""

    uri: str
    file: str | None = None
    bytes: int | None = None
    download_bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class CatalogModel:
    """A model that is known by name."""

    name: str
    title: str
    family: str
    kind: str
    parameters: int
    context: int
    licence: Licence
    languages: tuple[str, ...]
    sources: tuple[CatalogSource, ...]
    prompt_format: str | None = None  # for files of it that carry no chat template


@cache
def licences() -> dict[str, Licence]:
    """Every licence by its short name."""
    table = tomllib.loads(files(__package__).joinpath("licences.toml").read_text("utf-8"))
    return {
        name: Licence(name, row["title"], row["url"], row["commercial"], tuple(row["asks"]))
        for name, row in table.items()
    }


@cache
def models() -> dict[str, CatalogModel]:
    """Every model of the catalogue by name."""
    table = tomllib.loads(files(__package__).joinpath("models.toml").read_text("utf-8"))
    return {
        name: CatalogModel(
            name,
            row["title"],
            row["family"],
            row["kind"],
            row["parameters"],
            row["context"],
            licences()[row["licence"]],
            tuple(row["languages"]),
            tuple(CatalogSource(**source) for source in row.get("sources", ())),
            row.get("prompt_format"),
        )
        for name, row in table.items()
    }


def unknown_model(name: str, others: Iterable[str] = ()) -> NotFound:
    """The error for a name that nothing knows, with the names that are near it."""
    asked = name[:64].lower()
    known = sorted({*models(), *others})
    near = difflib.get_close_matches(asked, known, n=3, cutoff=0.5)
    if not near:  # the beginning of a name, perhaps with a slip
        near = [n for n in known if difflib.get_close_matches(asked, [n[: len(asked)]], cutoff=0.75)][:3]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return NotFound(f"no model {name[:100]!r}.{hint} `paragone models` lists what is known.")
