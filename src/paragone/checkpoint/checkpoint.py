"""Opens a model on disk, whatever its format: configuration, tensors, and where its tokenizer lies."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from paragone.checkpoint.gguf import read_gguf
from paragone.checkpoint.gptq import join_coded, scheme_of
from paragone.checkpoint.jsonfile import read_json, refuse_remote_code
from paragone.checkpoint.safetensors import INDEX, PICKLES, SINGLE, WORDS, read_folder
from paragone.checkpoint.tensors import StoredTensor
from paragone.errors import MalformedData, NotFound, Refused, UsageError

Dialect = Literal["hf", "gguf"]


@dataclass(frozen=True)
class Checkpoint:
    """A model's files, opened but not read: `config` is config.json, or GGUF metadata."""

    path: Path
    dialect: Dialect
    config_path: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]

    @property
    def architecture(self) -> str:
        """The family's name in this dialect: `model_type`, or `general.architecture`."""
        key = "model_type" if self.dialect == "hf" else "general.architecture"
        value = self.config.get(key)
        if not isinstance(value, str):
            raise MalformedData(f"{self.config_path}: {key} is missing, so the family is not known")
        return value

    @property
    def files(self) -> list[Path]:
        """What it is read from."""
        return sorted({self.config_path, *(t.file.path for t in self.tensors.values())})

    @property
    def disk_bytes(self) -> int:
        """Bytes of the weight files."""
        return sum(f.size for f in {t.file.path: t.file for t in self.tensors.values()}.values())

    @property
    def num_parameters(self) -> int:
        """Numbers stored in all tensors; tied ones are stored, and count, once."""
        total = 0
        for tensor in self.tensors.values():
            count = 1
            for dim in tensor.shape:
                count *= dim
            total += count
        return total


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a GGUF file or a Hugging Face folder. Reads the directory of the tensors, not the tensors.

    Raises NotFound, Refused (pickles, remote code), MalformedData, or UsageError where a folder holds
    several models.
    """
    if not path.exists():
        raise NotFound(f"{path}: no such file or folder")
    if path.is_file():
        return _open_file(path)
    if not path.is_dir():
        raise NotFound(f"{path}: is neither a file nor a folder")
    if (path / "config.json").is_file():
        return _open_folder(path)
    models = sorted(p for p in path.iterdir() if p.suffix == ".gguf")
    if len(models) > 1:
        names = ", ".join(p.name for p in models[:4])
        raise UsageError(f"{path}: holds {len(models)} GGUF files ({names}): name the one you mean")
    if models:
        return _open_file(models[0])
    for file in sorted(path.iterdir()):
        if file.suffix.lower() in PICKLES:
            raise _pickle(file)
    raise NotFound(f"{path}: holds no config.json and no GGUF file, so it is not a model")


def _open_file(path: Path) -> Checkpoint:
    if path.suffix.lower() in PICKLES:
        raise _pickle(path)
    if path.suffix == ".safetensors":
        raise UsageError(f"{path}: weights alone are not a model; name the folder that has config.json")
    file = read_gguf(path)
    split = file.metadata.get("split.count", 0)
    if not isinstance(split, int) or split > 1:
        raise UsageError(f"{path}: is one of several parts; join them with `llama-gguf-split --merge`")
    return Checkpoint(path, "gguf", path, file.metadata, file.tensors)


def _open_folder(folder: Path) -> Checkpoint:
    config_path = folder / "config.json"
    config = read_json(config_path)
    refuse_remote_code(config, config_path)
    for other in (folder / "tokenizer_config.json", folder / "generation_config.json"):
        if other.exists():
            refuse_remote_code(read_json(other), other)
    if not (folder / INDEX).exists() and not (folder / SINGLE).exists():
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() in PICKLES:
                raise _pickle(file)
        raise NotFound(f"{folder}: has a config.json but no {SINGLE}: was the download finished?")
    tensors, scheme = read_folder(folder), scheme_of(config, config_path)
    if scheme is not None:
        tensors = join_coded(tensors, scheme, folder)
    for tensor in tensors.values():
        if tensor.type is WORDS:
            raise MalformedData(f"{tensor.file.path}: {tensor.name[:120]} holds whole numbers, no weights")
    return Checkpoint(folder, "hf", config_path, config, tensors)


def _pickle(path: Path) -> Refused:
    return Refused(f"refusing to unpickle {path}; only safetensors and GGUF are loaded")
