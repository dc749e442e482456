"""What is compared: model and precision, with what is known of each before it runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paragone.catalog.catalog import DEFAULT_MODELS, Licence
from paragone.checkpoint.checkpoint import open_checkpoint
from paragone.checkpoint.store import Progress
from paragone.engine.resolve import fetch
from paragone.errors import ParagoneError, UsageError
from paragone.model.families import spec_of
from paragone.model.precision import (
    Precision,
    check_precision,
    estimate_bytes,
    gains_nothing,
    split_precision,
)

DEFAULT_PRECISIONS: tuple[Precision, ...] = ("bf16", "int8", "int4")
# What a process needs beside weights and cache: Python, torch, activations.
OVERHEAD_BYTES = 350_000_000


@dataclass
class Candidate:
    """A model at a precision, and everything that is learnt about it."""

    model: str
    precision: Precision
    path: Path
    known: dict[str, Any] = field(default_factory=dict)
    estimate_bytes: int = 0
    error: str | None = None  # why its speed could not be measured: it is out
    exit_code: int = ParagoneError.exit_code  # what the error would have been alone
    problems: list[str] = field(default_factory=list)  # what else failed: it stays in
    samples: dict[str, list[Any]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"{self.model} {self.precision}"

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain values for JSON."""
        return {**self.__dict__, "path": str(self.path), "label": self.label}


def parse_candidates(names: Sequence[str], precisions: Sequence[str], progress: Progress) -> list[Candidate]:
    """Candidates from MODEL or MODEL:PRECISION; without models, the two defaults.

    A model that cannot be had or read becomes a candidate with an error, so that the others still run;
    raises only where a name is misused or nothing at all is left.
    """
    wanted: list[tuple[str, Precision]] = []
    by_default: set[tuple[str, str]] = set()
    for precision in precisions:
        check_precision(precision)
    for name in names or DEFAULT_MODELS:
        model, own = split_precision(name)
        chosen = [own] if own else list(precisions or DEFAULT_PRECISIONS)
        if not own and not precisions:
            by_default.update((model, precision) for precision in DEFAULT_PRECISIONS)
        for precision in chosen:
            if (model, precision) not in wanted:
                wanted.append((model, precision))  # type: ignore[arg-type]
    opened: dict[str, Candidate] = {}
    out, errors = [], []
    for model, precision in wanted:
        if model not in opened:
            try:
                opened[model] = _open(model, precision, progress)
            except ParagoneError as err:
                errors.append(err)
                opened[model] = Candidate(
                    model, precision, Path(model), error=str(err), exit_code=err.exit_code
                )
        first = opened[model]
        candidate = Candidate(
            first.model, precision, first.path, first.known, error=first.error, exit_code=first.exit_code
        )
        if not first.error:
            checkpoint = open_checkpoint(first.path)
            spec, tensors = spec_of(checkpoint), checkpoint.tensors.values()
            if (model, precision) in by_default and gains_nothing(precision, spec, tensors):
                continue
            candidate.estimate_bytes = estimate_bytes(spec, precision, tensors) + OVERHEAD_BYTES
        out.append(candidate)
    _name_apart(out)
    if all(c.error for c in out):
        raise errors[0]
    return out


def check_lengths(candidates: Sequence[Candidate], tokens: int) -> None:
    """Raises UsageError where a candidate's context is too short for what is to be measured."""
    for candidate in candidates:
        context = candidate.known.get("context", tokens)
        if context < tokens:
            raise UsageError(
                f"{candidate.label}: {tokens} tokens of prompt and answer exceed its context of {context}; "
                "lower --prompt-tokens or --decode-tokens"
            )


def _name_apart(candidates: list[Candidate]) -> None:
    """Models of the same name from different places get their folder's name, or a number, before theirs."""
    for number, candidate in enumerate(candidates):
        others = {c.path for c in candidates if c.model == candidate.model}
        if len(others) > 1:
            taken = {c.model for c in candidates}
            name = f"{candidate.path.parent.name}/{candidate.model}"
            name = name if name not in taken else f"{number + 1}/{candidate.model}"
            for same in [c for c in candidates if c.path == candidate.path]:
                same.model = name


def _open(name: str, precision: Precision, progress: Progress) -> Candidate:
    found = fetch(name, progress)
    checkpoint = open_checkpoint(found.path)
    spec = spec_of(checkpoint)
    entry = found.entry
    known = {
        "family": spec.family,
        "parameters": checkpoint.num_parameters,
        "context": spec.max_position_embeddings,
        "disk_bytes": checkpoint.disk_bytes,
        "kind": entry.kind if entry else None,
        "languages": list(entry.languages) if entry else [],
        "licence": _licence(entry.licence) if entry else None,
        "stored_as": _stored_as(checkpoint.tensors.values()),
    }
    return Candidate(found.name, precision, found.path, known)


def _licence(licence: Licence) -> dict[str, Any]:
    return {
        "name": licence.title,
        "url": licence.url,
        "commercial": licence.commercial,
        "asks": list(licence.asks),
    }


def _stored_as(tensors: Any) -> str:
    """The type that holds most of the file's weights."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.type.name] = sizes.get(tensor.type.name, 0) + tensor.nbytes
    return max(sizes, key=lambda k: sizes[k])
