"""Weights that GPTQ and AWQ files keep as codes of 4 or 8 bits in 32-bit words, with a zero and a float16
scale for a group of inputs: weight = scale * (code - zero).

Both store a matrix with its inputs first. GPTQ (arXiv 2210.17323, the files of AutoGPTQ and GPTQModel) has
neighbouring inputs in a word, `qweight` (K / n, N), n codes a word, and zeros of neighbouring outputs, less
one in the first version of the format; with `desc_act`, `g_idx` (K) says in which group each input is. AWQ
(arXiv 2306.00978, "gemm") has outputs in a word, `qweight` (K, N / 8), in the order 0, 2, 4, 6, 1, 3, 5, 7.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paragone.checkpoint.gguf_blocks import Groups
from paragone.checkpoint.gguf_types import BlockType
from paragone.checkpoint.tensors import StoredTensor
from paragone.errors import BadConfiguration, MalformedData

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of the outputs in a word, from the lowest bits up
PIECE = 32  # inputs that share a scale where weights are packed; groups are whole numbers of them


def _never(_: NDArray[np.uint8]) -> Groups:
    raise AssertionError("such a tensor is read by its own `groups`")


@dataclass(frozen=True)
class Scheme:
    """What a configuration says of its quantised matrices."""

    method: str
    bits: int
    group_size: int  # -1: all inputs
    zero_offset: int  # what stored zeros lack

    @property
    def codes_a_word(self) -> int:
        return 32 // self.bits


def scheme_of(config: Mapping[str, Any], where: object) -> Scheme | None:
    """The scheme of a configuration's `quantization_config`; None where there is none. Raises
    BadConfiguration for what is not known."""
    found = config.get("quantization_config")
    if found is None:
        return None
    if not isinstance(found, dict):
        raise BadConfiguration(f"{where}: quantization_config is no object")
    where = f"{where}: quantization_config"
    method, bits, size = found.get("quant_method"), found.get("bits"), found.get("group_size", 128)
    if method not in ("gptq", "awq"):
        raise BadConfiguration(f"{where}: quant_method {str(method)[:40]!r} is not known, only gptq and awq")
    if bits not in (4, 8) or (method == "awq" and bits != 4):
        raise BadConfiguration(f"{where}: {method} with {str(bits)[:20]} bits is not supported")
    if not isinstance(size, int) or (size != -1 and (size < PIECE or size % PIECE)):
        raise BadConfiguration(f"{where}: group_size {str(size)[:20]} is no multiple of {PIECE}")
    version = str(found.get("version", "gemm")).lower()
    if method == "awq" and version != "gemm":
        raise BadConfiguration(f"{where}: awq version {version[:40]!r} is not known, only gemm")
    first_version = found.get("checkpoint_format", "gptq") == "gptq"
    return Scheme(method, bits, size, 1 if method == "gptq" and first_version else 0)


@dataclass(frozen=True)
class CodedTensor(StoredTensor):
    """A matrix (N, K) from its codes, zeros and scales. The fields of its base are those of the codes' tensor
    but for name, shape and type."""

    words: StoredTensor
    zeros: StoredTensor
    scales: StoredTensor
    scheme: Scheme
    inputs: NDArray[np.int32] | None  # those of the first group, then those of the next; None: as they are

    @property
    def order(self) -> NDArray[np.int32] | None:
        """As `StoredTensor.order`."""
        return self.inputs

    def groups(self, ids: NDArray[np.int64]) -> Groups:
        """As `StoredTensor.groups`, in pieces of 32 inputs."""
        scheme, (_, width) = self.scheme, self.shape
        per, bits = scheme.codes_a_word, scheme.bits
        mask = np.uint32((1 << bits) - 1)
        words = _words(self.words)
        if scheme.method == "gptq":
            columns = words[:, ids]  # (K / per, n)
            shifts = (np.arange(per, dtype=np.uint32) * bits)[:, None]
            codes = (columns[:, None, :] >> shifts & mask).reshape(width, len(ids)).T
        else:
            codes = (words[:, ids // per] >> self._shifts(ids) & mask).T
        zeros = (_words(self.zeros)[:, ids // per] >> self._shifts(ids) & mask).T.astype(np.float32)
        scales = np.asarray(self.scales.rows())[:, ids].T.astype(np.float32)  # (n, groups)
        minimum = -(zeros + scheme.zero_offset) * scales
        repeat = width // scales.shape[1] // PIECE
        lowest = 128 if bits == 8 else 0  # bytes as signed numbers, which is what packed layouts keep
        minimum += lowest * scales
        if self.inputs is not None:
            codes = codes[:, self.inputs]
        pieces = (codes.astype(np.int16) - lowest).astype(np.int8).reshape(len(ids), -1, PIECE)
        return Groups(pieces, scales.repeat(repeat, axis=1), minimum.repeat(repeat, axis=1))

    def _shifts(self, ids: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Where outputs lie in a word that holds several."""
        scheme = self.scheme
        places = np.arange(scheme.codes_a_word)
        if scheme.method == "awq":
            places[list(AWQ_ORDER)] = np.arange(8)
        return (places[ids % scheme.codes_a_word] * scheme.bits).astype(np.uint32)

    def gather(self, ids: NDArray[np.int64]) -> NDArray[np.generic]:
        """Rows in float32."""
        groups = self.groups(ids)
        assert groups.minimum is not None  # noqa: S101 -- both formats have zeros
        values = groups.scale[..., None] * groups.q.astype(np.float32) + groups.minimum[..., None]
        values = values.reshape(len(ids), -1)
        return values if self.inputs is None else values[:, np.argsort(self.inputs)]

    def rows(self, start: int = 0, stop: int | None = None) -> NDArray[np.generic]:
        """Rows [start, stop) in float32."""
        return self.gather(np.arange(start, self.shape[0] if stop is None else stop))


def _words(tensor: StoredTensor) -> NDArray[np.uint32]:
    raw = np.frombuffer(tensor.file.buffer, dtype=np.uint8, count=tensor.nbytes, offset=tensor.offset)
    return raw.view("<u4").reshape(tensor.shape)


def join_coded(tensors: dict[str, StoredTensor], scheme: Scheme, where: object) -> dict[str, StoredTensor]:
    """The tensors of a folder with every set of codes, zeros and scales as one matrix named `.weight`. Raises
    MalformedData where they do not fit each other."""
    out = dict(tensors)
    for name in [n for n in tensors if n.endswith(".qweight")]:
        base = name.removesuffix("qweight")
        parts = {part: out.pop(base + part, None) for part in ("qweight", "qzeros", "scales", "g_idx")}
        words, zeros, scales, order = parts.values()
        if words is None or zeros is None or scales is None:
            raise MalformedData(f"{where}: {base[:120]}qweight has no qzeros or no scales beside it")
        coded = _coded(base + "weight", words, zeros, scales, scheme)
        out[base + "weight"] = replace(coded, inputs=_order(order, coded.shape[1], scheme, where))
    return out


def _coded(
    name: str, words: StoredTensor, zeros: StoredTensor, scales: StoredTensor, scheme: Scheme
) -> CodedTensor:
    per = scheme.codes_a_word
    fits = (
        all(len(t.shape) == 2 for t in (words, zeros, scales)) and words.type.name == zeros.type.name == "I32"
    )
    if fits:
        first, second = words.shape
        width, rows = (first * per, second) if scheme.method == "gptq" else (first, second * per)
        size = width if scheme.group_size == -1 else scheme.group_size
        groups = width // size if size and width % size == 0 and width % PIECE == 0 else -1
        fits = rows % per == 0 and zeros.shape == (groups, rows // per) and scales.shape == (groups, rows)
        fits = fits and words.offset % 4 == 0 and zeros.offset % 4 == 0 and scales.type.name != "I32"
    if not fits:
        shapes = ", ".join(f"{list(t.shape)}" for t in (words, zeros, scales))
        raise MalformedData(
            f"{words.file.path}: codes, zeros and scales of {name[:120]} do not fit each other: {shapes}, "
            f"{scheme.bits} bits, groups of {scheme.group_size}"
        )
    kind = BlockType(scheme.method.upper(), -1, 1, 1, _never, code_bits=scheme.bits)
    base = replace(words, name=name, shape=(rows, width), type=kind)
    return CodedTensor(**base.__dict__, words=words, zeros=zeros, scales=scales, scheme=scheme, inputs=None)


def _order(index: StoredTensor | None, width: int, scheme: Scheme, where: object) -> NDArray[np.int32] | None:
    """Inputs group by group, from the group of each; None where they lie so already."""
    if index is None:
        return None
    size = width if scheme.group_size == -1 else scheme.group_size
    if index.shape != (width,) or index.type.name != "I32" or index.offset % 4:
        raise MalformedData(f"{where}: {index.name[:120]} is not one number for each of {width} inputs")
    group = _words(index)
    order = np.argsort(group, kind="stable").astype(np.int32)
    if not np.array_equal(group[order], np.arange(width) // size):
        raise MalformedData(f"{where}: {index.name[:120]} does not put {size} inputs into each group")
    return None if np.array_equal(order, np.arange(width)) else order
