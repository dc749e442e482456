"""Every family that Paragone knows, by the name its files give it."""

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from paragone.checkpoint.checkpoint import Checkpoint, Dialect
from paragone.checkpoint.facts import Facts
from paragone.errors import BadConfiguration
from paragone.model.spec import ModelSpec

FixUp = Callable[[NDArray[np.generic], ModelSpec], NDArray[np.generic]]


@dataclass(frozen=True)
class Family:
    """How one dialect's files of one family are read.

    `names` maps neutral parameter names to the file's; `{}` stands for the numbers of layer and expert, and
    `NAME[{}]` for one matrix of a stack. `fixups` maps neutral names to what their values need before they
    mean the same as ours. `layouts` are other ways to name tensors: (a tensor that tells it, the names that
    differ). `transposed` are stored with their inputs first. `ignored_tensors` are in some
    files and hold nothing that the model needs.
    """

    spec: Callable[[Facts, Checkpoint], ModelSpec]
    names: Mapping[str, str]
    fixups: Mapping[str, FixUp] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    layouts: tuple[tuple[str, Mapping[str, str]], ...] = ()
    ignored_tensors: frozenset[str] = frozenset()

    @property
    def converted(self) -> frozenset[str]:
        """Neutral names of what does not lie in the file as it is needed."""
        return self.transposed | frozenset(self.fixups)


# Module and what its families are called.
MODULES = {
    "llama": "Llama 1, 2, 3.x and alike",
    "llama4": "Llama 4 (text)",
    "mistral": "Mistral, Mixtral (GGUF: llama)",
    "gemma": "Gemma 1, 2",
    "gemma3": "Gemma 3 (text)",
    "qwen": "Qwen 1.5, 2, 2.5, 3",
    "qwen_moe": "Qwen2-MoE, Qwen3-MoE",
    "phi": "Phi 1 to 4",
    "falcon": "Falcon",
    "bloom": "BLOOM, BLOOMZ",
}


def known_families() -> dict[str, dict[Dialect, dict[str, Family]]]:
    """Title to what runs of it in each dialect, by the name its files give it."""
    found = {}
    for name, title in MODULES.items():
        module = importlib.import_module(f"paragone.model.families.{name}")
        found[title] = {"hf": module.FAMILIES["hf"], "gguf": module.FAMILIES.get("gguf", {})}
    return found  # type: ignore[return-value]


def family_of(checkpoint: Checkpoint) -> Family:
    """The family of a checkpoint, or BadConfiguration saying which it is and which are known."""
    families: dict[Dialect, dict[str, Family]] = {"hf": {}, "gguf": {}}
    for dialects in known_families().values():
        for dialect, table in dialects.items():
            families[dialect].update(table)
    known = families[checkpoint.dialect]
    name = checkpoint.architecture
    if name not in known:
        near = difflib.get_close_matches(name[:64], known, n=2)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise BadConfiguration(
            f"{checkpoint.config_path}: architecture {name[:80]!r} is not supported.{hint} "
            f"Known: {', '.join(sorted(known))}."
        )
    family = known[name]
    for telling, names in family.layouts:
        if telling in checkpoint.tensors:
            return replace(family, names={**family.names, **names})
    return family


def spec_of(checkpoint: Checkpoint) -> ModelSpec:
    """Reads the spec from a checkpoint's configuration; no weights are read."""
    return read_spec(checkpoint)[0]


def read_spec(checkpoint: Checkpoint) -> tuple[ModelSpec, list[str]]:
    """The same, with the keys that were left aside because they change nothing."""
    family = family_of(checkpoint)
    prefix = f"{checkpoint.architecture}." if checkpoint.dialect == "gguf" else ""
    facts = Facts(checkpoint.config_path, checkpoint.config, prefix)
    return family.spec(facts, checkpoint).checked(checkpoint.config_path), facts.ignored
