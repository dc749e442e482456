"""Reads safetensors files, single and sharded, as mapped tensors.

The `safetensors` library judges whether a file is well formed (header at most 100 MB, offsets in order
and covering the buffer, shape times type equal to bytes); what it accepts is then read here through a
map of our own, by rows, so that pages can leave memory as soon as a tensor has been taken over.
Source: the safetensors format description, github.com/huggingface/safetensors.
"""

import json
import struct
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from paragone import limits
from paragone.checkpoint.gguf_types import TYPES, BlockType
from paragone.checkpoint.jsonfile import read_json
from paragone.checkpoint.tensors import MappedFile, StoredTensor
from paragone.errors import MalformedData, NotFound, Refused

WORDS = BlockType("I32", 26, 1, 4)  # what codes of GPTQ and AWQ are kept in
DENSE = {t.name: t for t in (*TYPES, WORDS) if t.unpack is None}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file. Raises MalformedData naming the file and what is wrong."""
    file = MappedFile.open(path)
    try:
        with safe_open(str(path), framework="np"):
            pass
    except (SafetensorError, OSError) as err:
        reason = str(err).removeprefix("Error while deserializing header: ")
        raise MalformedData(f"{path}: not a valid safetensors file: {reason} (header)") from None
    (length,) = struct.unpack_from("<Q", file.buffer, 0)
    header = json.loads(file.buffer[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(entry, dict):  # the library takes a list of the three fields for an object
            raise MalformedData(f"{path}: its entry is no object (tensor {name!r})")
        kind, shape = DENSE.get(entry["dtype"]), tuple(entry["shape"])
        start, stop = entry["data_offsets"]
        if kind is None:
            known = ", ".join(DENSE)
            raise MalformedData(
                f"{path}: type {entry['dtype']} is not supported, only {known} (tensor {name!r})"
            )
        if len(shape) > limits.TENSOR_RANK or 0 in shape:
            raise MalformedData(f"{path}: shape {list(shape)} is not usable (tensor {name!r})")
        tensors[name] = StoredTensor(name, shape, kind, file, 8 + length + start, stop - start)
    return tensors


def read_folder(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a Hugging Face folder: `model.safetensors`, or the shards that its index names."""
    index = folder / INDEX
    if not index.exists():
        return read_safetensors(folder / SINGLE)
    weight_map = _weight_map(index)
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        if shard.lower().endswith(PICKLES):
            raise Refused(f"refusing to unpickle {shard[:120]}; only safetensors and GGUF are loaded")
        if Path(shard).name != shard or not shard.endswith(".safetensors") or len(shard.encode()) > 255:
            raise MalformedData(f"{index}: {shard[:120]!r} is not the name of a safetensors file beside it")
        if not (folder / shard).is_file():
            raise NotFound(f"{folder / shard}: {INDEX} names this shard, but it is missing: pull again?")
        for name, tensor in read_safetensors(folder / shard).items():
            if weight_map.get(name) != shard:
                raise MalformedData(f"{folder / shard}: tensor {name!r} is not where {INDEX} says it is")
            tensors[name] = tensor
    if missing := sorted(weight_map.keys() - tensors.keys()):
        raise MalformedData(f"{folder / weight_map[missing[0]]}: tensor {missing[0]!r} is missing")
    return tensors


def _weight_map(index: Path) -> dict[str, Any]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise MalformedData(f"{index}: has no weight_map from tensor names to file names")
    return weight_map
