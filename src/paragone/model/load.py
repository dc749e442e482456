"""From stored tensors to a decoder: every parameter is filled, every tensor is used, nothing is held twice.

Matrices are read and converted in runs of rows, straight into the form in which they stay; the pages of
a tensor leave memory once it has been taken over.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paragone.checkpoint.checkpoint import Checkpoint
from paragone.checkpoint.tensors import StoredTensor
from paragone.errors import MalformedData
from paragone.model.attention import Attention
from paragone.model.block import BLOCKS, Block
from paragone.model.decoder import Decoder
from paragone.model.families import Family, family_of, spec_of
from paragone.model.linear import (
    DenseEmbedding,
    Embedding,
    Linear,
    PackedEmbedding,
    StoredEmbedding,
    as_torch,
)
from paragone.model.mlp import MLP, MoE
from paragone.model.norm import LayerNorm, Norm
from paragone.model.parameters import (
    EXPERT_GATE_UP,
    GATE_UP,
    gate_up_parts,
    one_of,
    parameter_names,
    qkv_parts,
    split_index,
    stored_name,
    template,
)
from paragone.model.precision import Precision, check_precision
from paragone.model.spec import BLOCK_NORMS, LayerSpec, ModelSpec
from paragone.ops.packed import PackedMatrix, Packing
from paragone.quant.rtn import INT4, INT8, quantize_int4, quantize_int8

CHUNK = 1 << 16  # numbers read at a time: their float32 form stays in the processor's cache
MAPPED_BYTES = 1 << 21  # bytes of a file that may be in memory beside what is made of them
IN_PLACE = {"F32": torch.float32, "BF16": torch.bfloat16}  # stored types that need no conversion

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)
Chunks = Iterator[tuple[int, Tensor]]  # (first row, rows) of one matrix


def activation_dtype(precision: Precision) -> torch.dtype:
    """The type in which a model of this precision computes between its products."""
    return torch.float32 if precision == "fp32" else torch.bfloat16


def load_decoder(
    checkpoint: Checkpoint,
    precision: Precision = "bf16",
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Decoder:
    """Builds the decoder of a checkpoint at a precision.

    Raises BadConfiguration for a configuration that is not understood, MalformedData where tensors are
    missing, left over or of the wrong shape.
    """
    check_precision(precision)
    spec = spec_of(checkpoint)
    loader = _Loader(checkpoint, family_of(checkpoint), spec, precision, torch.device(device), progress)
    with torch.inference_mode():
        return loader.decoder()


class _Loader:
    """One load: reads parameters by neutral name and keeps account of the tensors used."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        family: Family,
        spec: ModelSpec,
        precision: Precision,
        device: torch.device,
        progress: Progress | None,
    ) -> None:
        self.checkpoint, self.family, self.spec = checkpoint, family, spec
        self.precision, self.device, self.progress = precision, device, progress
        self.dtype = activation_dtype(precision)
        self.used: set[str] = set()
        self.in_place: set[int] = set()  # files, by identity, whose pages the weights are
        self.bytes_done = 0
        self.bytes_total = sum(t.nbytes for t in checkpoint.tensors.values())

    def decoder(self) -> Decoder:
        spec = self.spec
        self.check_names()
        width = spec.hidden_size
        source = "embed" if spec.tie_word_embeddings else "head"
        head_bias = self.vector("head.bias", spec.vocab_size).to(self.dtype) if spec.head_bias else None
        head = self.linear((source,), (spec.vocab_size,), width, outer=True, given_bias=head_bias)
        blocks = []
        for number, layer in enumerate(spec.layers):
            return_freed_memory()
            blocks.append(self.block(number, layer))
        return_freed_memory()
        embed = self.embedding(head)
        embedding_norm = self.norm("embed_norm") if spec.embedding_norm else None
        return Decoder(spec, embed, blocks, self.norm("final_norm"), head, self.dtype, embedding_norm)

    def embedding(self, head: Linear) -> Embedding:
        """On the CPU the rows stay in the file; elsewhere they are the tied head's weight, or a copy."""
        weight = head.parts[0]
        if self.spec.tie_word_embeddings and isinstance(weight, Tensor):
            return DenseEmbedding(weight)
        if self.spec.tie_word_embeddings and isinstance(weight, PackedMatrix) and weight.packing.is_stored:
            return PackedEmbedding(weight, self.dtype)
        tensor = self.take("embed.weight", (self.spec.vocab_size, self.spec.hidden_size))
        if self.device.type == "cpu":
            return StoredEmbedding(tensor, self.dtype, file_in_use=id(tensor.file) in self.in_place)
        rows = torch.empty(tensor.shape, dtype=self.dtype)
        for at, chunk in self.row_chunks("embed.weight", *rows.shape):
            rows[at : at + len(chunk)] = chunk
        return DenseEmbedding(rows.to(self.device))

    def block(self, number: int, layer: LayerSpec) -> Block:
        spec, at = self.spec, f"layers.{number}"
        H, K, E = spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim
        parts = [f"{at}.{part}" for part in qkv_parts(self.family.names)]
        rows = (H * E, K * E, K * E) if len(parts) == 3 else ((H + 2 * K) * E,)
        qkv = self.linear(parts, rows, spec.hidden_size, bias=spec.qkv_bias)
        o = self.linear((f"{at}.attn.o",), (spec.hidden_size,), H * E, bias=spec.o_bias)
        attn = Attention(spec, layer, qkv, o, self.qk_norm(at) if spec.qk_norm == "weighted" else None)
        norms = [self.norm(f"{at}.{name}") for name in BLOCK_NORMS[spec.block]]
        mlp = self.moe(f"{at}.moe") if layer.moe else self.dense_mlp(f"{at}.mlp")
        return BLOCKS[spec.block](attn, mlp, norms)

    def dense_mlp(self, at: str) -> MLP:
        spec = self.spec
        parts = gate_up_parts(at, GATE_UP, self.family.names, spec.gated_mlp)
        return self.mlp(at, parts, spec.intermediate_size, bias=spec.mlp_bias, is_gated=spec.gated_mlp)

    def mlp(
        self, at: str, parts: tuple[str, ...], inner: int, *, bias: bool = False, is_gated: bool = True
    ) -> MLP:
        width = self.spec.hidden_size
        fused = is_gated and len(parts) == 1
        up = self.linear(parts, (2 * inner,) if fused else (inner,) * len(parts), width, bias=bias)
        down = self.linear((f"{at}.down",), (width,), inner, bias=bias)
        return MLP(self.spec.activation, up, down, is_gated=is_gated)

    def moe(self, at: str) -> MoE:
        moe, width, names = self.spec.moe, self.spec.hidden_size, self.family.names
        assert moe is not None  # noqa: S101 -- a spec with such layers has it
        router = self.linear((f"{at}.router",), (moe.num_experts,), width, exact=True)
        experts = []
        for number in range(moe.num_experts):
            parts = gate_up_parts(f"{at}.{number}", EXPERT_GATE_UP, names)
            experts.append(self.mlp(f"{at}.{number}", parts, moe.intermediate_size))
        shared = gate = None
        if moe.shared_intermediate_size:
            parts = (f"{at}.shared.gate", f"{at}.shared.up")
            shared = self.mlp(f"{at}.shared", parts, moe.shared_intermediate_size)
        if moe.shared_gate:
            gate = self.linear((f"{at}.shared_gate",), (1,), width, exact=True)
        return MoE(moe, router, experts, shared, gate)

    def norm(self, name: str) -> Norm:
        size = self.spec.hidden_size
        weight = self.norm_weight(f"{name}.weight", size)
        if self.spec.norm.kind == "layer":
            return LayerNorm(self.spec.norm, weight, self.norm_weight(f"{name}.bias", size))
        return Norm(self.spec.norm, weight)

    def norm_weight(self, name: str, size: int) -> Tensor:
        dtype = torch.float32 if self.spec.norm.scale_in_float32 else self.dtype
        return self.vector(name, size).to(dtype).to(self.device)

    def qk_norm(self, at: str) -> Tensor:
        """The norm weights of query and key heads, one row a head."""
        E = self.spec.head_dim
        q = self.norm_weight(f"{at}.attn.q_norm.weight", E).expand(self.spec.num_attention_heads, E)
        k = self.norm_weight(f"{at}.attn.k_norm.weight", E).expand(self.spec.num_key_value_heads, E)
        return torch.cat((q, k))

    def linear(
        self,
        parts: Sequence[str],
        rows: tuple[int, ...],
        in_features: int,
        *,
        bias: bool = False,
        outer: bool = False,
        exact: bool = False,
        given_bias: Tensor | None = None,
    ) -> Linear:
        """One weight matrix from one or several stored ones, stacked.

        The head (`outer`) may keep 8 bits where the rest has 4: errors there reach every token directly. What
        only decides (`exact`) is never quantised.
        """
        bias_N = None if given_bias is None else given_bias.to(self.device)
        if bias:
            biases = [self.vector(f"{p}.bias", n) for p, n in zip(parts, rows, strict=True)]
            bias_N = torch.cat(biases).to(self.dtype).to(self.device)
        limit = {"int8": 8, "int4": 8 if outer else 4}.get(self.precision)
        if exact or limit is None:
            stored = self.stored_parts(parts, rows, in_features)
            return Linear(stored or [self.dense(parts, rows, in_features)], bias_N)
        matrices = [
            self.packed(f"{p}.weight", size, in_features, limit) for p, size in zip(parts, rows, strict=True)
        ]
        return Linear(matrices, bias_N)

    def stored_parts(self, parts: Sequence[str], sizes: tuple[int, ...], width: int) -> list[Tensor]:
        """The matrices where they lie in the file, if they are there just as they are needed; else none.

        Loading them costs nothing, and processes that run the same model share the memory.
        """
        names = [f"{p}.weight" for p in parts]
        if self.device.type != "cpu" or any(template(n) in self.family.converted for n in names):
            return []
        tensors = [self.take(n, (size, width)) for n, size in zip(names, sizes, strict=True)]
        as_needed = all(
            IN_PLACE.get(t.type.name) == self.dtype and t.offset % self.dtype.itemsize == 0 for t in tensors
        )
        if not as_needed:
            return []
        for tensor in tensors:
            self.in_place.add(id(tensor.file))
            self.done(tensor)
        return [as_torch(t, t.rows()) for t in tensors]

    def dense(self, parts: Sequence[str], sizes: tuple[int, ...], width: int) -> Tensor:
        weight = torch.empty((sum(sizes), width), dtype=self.dtype)
        at = 0
        for part, size in zip(parts, sizes, strict=True):
            for first, rows in self.row_chunks(f"{part}.weight", size, width):
                weight[at + first : at + first + len(rows)] = rows
            at += size
        return weight.to(self.device)

    def packed(self, name: str, size: int, width: int, limit: int) -> PackedMatrix:
        """A matrix in at most so many bits. What the file has in as many or fewer keeps its integers."""
        tensor = self.take(name, self.stored_shape(name, size, width))
        keeps = tensor.type.is_quantized and tensor.type.code_bits <= limit
        if keeps and template(name) not in self.family.transposed:
            return self.repacked(tensor, name, size, width)
        matrix = PackedMatrix(size, width, INT8 if limit == 8 else INT4)
        quantize = quantize_int8 if limit == 8 else quantize_int4
        for at, rows in self.row_chunks(name, size, width):
            matrix.put(at, *quantize(rows))
        return matrix.to(self.device)

    def repacked(self, tensor: StoredTensor, name: str, size: int, width: int) -> PackedMatrix:
        """A matrix with the integers that the file has."""
        matrix: PackedMatrix | None = None
        for at, ids in self.row_runs(tensor, name, size, width):
            groups = tensor.groups(ids)
            if matrix is None:
                packing = Packing(tensor.type.code_bits, groups.minimum is not None, groups.q.shape[-1] == 16)
                matrix = PackedMatrix(size, width, packing)
            codes = groups.q.astype(np.int16) + matrix.packing.center
            minimum = None if groups.minimum is None else torch.from_numpy(groups.minimum)
            flat = torch.from_numpy(codes.astype(np.uint8).reshape(len(ids), -1))
            matrix.put(at, flat, torch.from_numpy(groups.scale), minimum)
        self.done(tensor)
        assert matrix is not None  # noqa: S101 -- every matrix has rows
        return matrix.to(self.device)

    def row_runs(
        self, tensor: StoredTensor, name: str, size: int, width: int
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """(first row, the stored rows that come there), a bounded number at a time. Fix-ups of matrices move
        rows and nothing else."""
        order = np.arange(size)
        fixup = self.family.fixups.get(template(name))
        if fixup:
            order = fixup(order[:, None], self.spec)[:, 0].astype(np.int64)
        step, row_bytes, mapped = max(1, CHUNK // width), tensor.nbytes // size, 0
        for at in range(0, size, step):
            yield at, order[at : at + step]
            mapped += step * row_bytes
            if mapped > MAPPED_BYTES:
                tensor.file.forget()
                mapped = 0

    def stored_shape(self, name: str, size: int, width: int) -> tuple[int, int]:
        return (width, size) if template(name) in self.family.transposed else (size, width)

    def row_chunks(self, name: str, size: int, width: int) -> Chunks:
        """(first row, rows) of a matrix, a bounded number of rows at a time."""
        tensor = self.take(name, self.stored_shape(name, size, width))
        if template(name) in self.family.transposed:
            yield 0, as_torch(tensor, np.ascontiguousarray(tensor.rows().T))
        else:
            for at, ids in self.row_runs(tensor, name, size, width):
                yield at, as_torch(tensor, tensor.gather(ids))
        self.done(tensor)

    def vector(self, name: str, size: int) -> Tensor:
        """A 1-D parameter in float32, after its fix-up."""
        tensor = self.take(name, (size,))
        values = as_torch(tensor, tensor.rows()).float().numpy()
        fixup = self.family.fixups.get(template(name))
        if fixup:
            values = fixup(values, self.spec)
        self.done(tensor)
        return torch.from_numpy(np.array(values, dtype=np.float32))

    def take(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        stored = stored_name(name, self.family.names)
        base, index = split_index(stored)
        tensor = self.checkpoint.tensors[base]
        if index is not None and (len(tensor.shape) != len(shape) + 1 or index >= tensor.shape[0]):
            raise MalformedData(
                f"{tensor.file.path}: {base} is {list(tensor.shape)}, no stack of {list(shape)}"
            )
        tensor = tensor if index is None else one_of(tensor, index)
        if shape not in (tensor.shape, (1, *tensor.shape)):
            raise MalformedData(
                f"{tensor.file.path}: {stored} is {list(tensor.shape)}, but the configuration "
                f"({self.checkpoint.config_path.name}) needs {list(shape)}"
            )
        self.used.add(stored)
        return tensor

    def done(self, tensor: StoredTensor) -> None:
        tensor.file.forget()
        self.bytes_done += tensor.nbytes
        if self.progress:
            self.progress(self.bytes_done, self.bytes_total)

    def check_names(self) -> None:
        """Before anything is read: every tensor that is needed is there, and none is left over."""
        names = self.family.names
        needed = {split_index(stored_name(n, names))[0] for n in parameter_names(self.spec, names)}
        offered = set(self.checkpoint.tensors)
        layers = range(self.spec.num_layers)
        ignored = {n.format(i) for n in self.family.ignored_tensors for i in layers}
        if self.spec.tie_word_embeddings:  # some files repeat the embedding as the head
            ignored.add(self.family.names["head.weight"])
        missing, unused = sorted(needed - offered), sorted(offered - needed - ignored)
        if missing or unused:
            found = [f"{len(missing)} tensors are missing ({_some(missing)})"] if missing else []
            found += [f"{len(unused)} are not known ({_some(unused)})"] if unused else []
            raise MalformedData(
                f"{self.checkpoint.path}: {' and '.join(found)}: "
                f"{self.checkpoint.config_path.name} describes another model than the weights"
            )


def return_freed_memory() -> None:
    """Hands what the allocator has freed back to the system, where it can (glibc): between weights that stay,
    conversions leave holes that would otherwise count as used."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
