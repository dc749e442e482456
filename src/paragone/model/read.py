"""A checkpoint's parameters by neutral name, read into the form in which they stay.

Matrices are read and converted in runs of rows, and nothing is held twice; the pages of a tensor leave memory
once it has been taken over.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paragone.checkpoint.checkpoint import Checkpoint
from paragone.checkpoint.packed_file import Kept, read_packed, write_packed
from paragone.checkpoint.tensors import StoredTensor
from paragone.errors import MalformedData
from paragone.model.families import Family
from paragone.model.kept import as_compressed, as_hadamard, as_kept, as_packed
from paragone.model.linear import Linear, as_torch
from paragone.model.parameters import one_of, parameter_names, split_index, stored_name, template
from paragone.model.precision import MOST_BITS, Precision
from paragone.model.spec import ModelSpec
from paragone.ops import pages
from paragone.ops.compressed import CompressedMatrix, compresses
from paragone.ops.hadamard import MOST_WIDTH, HadamardMatrix
from paragone.ops.linear import Matrix
from paragone.ops.packed import PANEL, PackedMatrix, Packing
from paragone.quant.rtn import INT4, put_rounded, round_stored, rounds

CHUNK = 1 << 16  # numbers read at a time: their float32 form stays in the processor's cache
MAPPED_BYTES = 1 << 21  # bytes of a file that may be in memory beside what is made of them
IN_PLACE = {"F32": torch.float32, "BF16": torch.bfloat16}  # stored types that need no conversion

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)
Chunks = Iterator[tuple[int, Tensor]]  # (first row, rows) of one matrix
M = TypeVar("M", bound=Matrix)


def activation_dtype(precision: Precision) -> torch.dtype:
    """The type in which a model of this precision computes between its products."""
    return torch.float32 if precision == "fp32" else torch.bfloat16


class Parameters:
    """What one load reads. Raises MalformedData where tensors are missing, left over or of another shape."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        family: Family,
        spec: ModelSpec,
        precision: Precision,
        device: torch.device,
        progress: Progress | None,
        keep: Path | None,
    ) -> None:
        """`keep`: the file in which packed matrices are kept, or are to be."""
        self.checkpoint, self.family, self.spec = checkpoint, family, spec
        self.precision, self.device, self.progress = precision, device, progress
        self.dtype = activation_dtype(precision)
        self.bytes_done = 0
        self.bytes_total = sum(t.nbytes for t in checkpoint.tensors.values())
        self.check_names()
        self.keep = keep
        self.kept = {} if keep is None else read_packed(keep)
        self.to_keep: dict[str, Matrix] = {}
        self.made_any = False  # that is not kept yet

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
        bias_N = None if given_bias is None else given_bias.to(self.dtype).to(self.device)
        if bias:
            biases = [self.vector(f"{p}.bias", n) for p, n in zip(parts, rows, strict=True)]
            bias_N = torch.cat(biases).to(self.dtype).to(self.device)
        limit = 8 if outer and self.precision == "int4" else MOST_BITS.get(self.precision)
        if exact or limit is None:
            if self.dtype == torch.bfloat16 and compresses(self.device):
                names = [f"{p}.weight" for p in parts]
                found = [self.compressed(n, size, in_features) for n, size in zip(names, rows, strict=True)]
                return Linear(found, bias_N)
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
            self.done(tensor)
        return [as_torch(t, t.rows()) for t in tensors]

    def dense(self, parts: Sequence[str], sizes: tuple[int, ...], width: int) -> Tensor:
        weight = pages.empty((sum(sizes), width), self.dtype)
        at = 0
        for part, size in zip(parts, sizes, strict=True):
            for first, rows in self.row_chunks(f"{part}.weight", size, width):
                weight[at + first : at + first + len(rows)] = rows
            at += size
        return weight.to(self.device)

    def compressed(self, name: str, size: int, width: int) -> CompressedMatrix:
        """A matrix in bfloat16 as the kernels keep it."""
        tensor = self.take(name, self.stored_shape(name, size, width))

        def made() -> CompressedMatrix:
            matrix = CompressedMatrix(size, width)
            self.fill(
                tensor, name, matrix,
                lambda at, rows: matrix.put(at, rows.to(torch.bfloat16)),
                matrix.put_stored if tensor.type.name == "BF16" else None,
            )  # fmt: skip
            return matrix

        return self.keeping(name, tensor, lambda kept: as_compressed(kept, size, width), made)

    def packed(self, name: str, size: int, width: int, limit: int) -> PackedMatrix | HadamardMatrix:
        """A matrix in at most so many bits. What the file has in as many or fewer keeps its integers."""
        tensor = self.take(name, self.stored_shape(name, size, width))
        keeps = tensor.type.is_quantized and tensor.type.code_bits <= limit
        if keeps and template(name) not in self.family.transposed:
            made = self.keeping(
                name, tensor, lambda kept: as_packed(kept, size, width),
                lambda: self.repacked(tensor, name, size, width),
            )  # fmt: skip
            return made.to(self.device)
        return (self.in_int8 if limit == 8 else self.in_int4)(tensor, name, size, width).to(self.device)

    def in_int8(self, tensor: StoredTensor, name: str, size: int, width: int) -> HadamardMatrix:
        if width > MOST_WIDTH:
            raise MalformedData(
                f"{tensor.file.path}: {name} has {width} columns: in int8 there may be {MOST_WIDTH}"
            )

        def made() -> HadamardMatrix:
            matrix, kind = HadamardMatrix(size, width), tensor.type.name
            stored = partial(matrix.put_stored, kind) if rounds(kind) else None
            self.fill(tensor, name, matrix, matrix.put, stored)
            return matrix

        return self.keeping(name, tensor, lambda kept: as_hadamard(kept, size, width), made)

    def in_int4(self, tensor: StoredTensor, name: str, size: int, width: int) -> PackedMatrix:
        def made() -> PackedMatrix:
            matrix, kind = PackedMatrix(size, width, INT4), tensor.type.name
            stored = partial(round_stored, matrix, kind) if rounds(kind) else None
            self.fill(tensor, name, matrix, partial(put_rounded, matrix), stored)
            return matrix

        return self.keeping(name, tensor, lambda kept: as_packed(kept, size, width), made)

    def keeping(
        self, name: str, tensor: StoredTensor, read: Callable[[Kept], M | None], make: Callable[[], M]
    ) -> M:
        """What is on disk, or what is made, which comes there."""
        kept = self.kept.get(name)
        matrix = None if kept is None else read(kept)
        if matrix is None:
            matrix, self.made_any = make(), True
        else:
            self.done(tensor)
        if self.keep is not None:
            self.to_keep[name] = matrix
        return matrix

    def fill(
        self,
        tensor: StoredTensor,
        name: str,
        matrix: Matrix,
        put: Callable[[int, Tensor], None],
        put_stored: Callable[[int, int, NDArray[np.int64]], None] | None,
    ) -> None:
        """All rows of a matrix: put as the file has them where it can, else a run of floats at a time."""
        if put_stored is None or template(name) in self.family.transposed:
            for at, rows in self.row_chunks(name, matrix.rows, matrix.width):
                put(at, rows)
            return
        for at, ids in self.row_runs(tensor, name, matrix.rows, MAPPED_BYTES * matrix.rows // tensor.nbytes):
            put_stored(at, tensor.address, ids)
        self.done(tensor)

    def repacked(self, tensor: StoredTensor, name: str, size: int, width: int) -> PackedMatrix:
        """A matrix with the integers that the file has."""
        first = tensor.groups(np.zeros(1, dtype=np.int64))
        fine = first.q.shape[-1] == 16
        kind, has_minimum = tensor.type, first.minimum is not None
        packing = Packing(kind.code_bits, has_minimum, fine, tensor.factor, kind.levels)
        order = None if tensor.order is None else torch.from_numpy(tensor.order)
        matrix = PackedMatrix(size, width, packing, order=order)
        step = MAPPED_BYTES * size // tensor.nbytes
        for at, ids in self.row_runs(tensor, name, size, step):
            if matrix.repack(at, tensor.type.name, tensor.address, ids, tensor.type.codebook):
                continue
            groups = tensor.groups(ids)
            codes = packing.codes(groups.q)
            minimum = None if groups.minimum is None else torch.from_numpy(groups.minimum)
            flat = torch.from_numpy(codes.reshape(len(ids), -1))
            matrix.put(at, flat, torch.from_numpy(groups.scale), minimum)
        self.done(tensor)
        return matrix

    def keep_made(self) -> None:
        """Keeps all packed matrices where one of them is new. Where that fails, a warning says why."""
        if self.keep is None or not self.made_any:
            return
        try:
            kept = {name: as_kept(matrix) for name, matrix in self.to_keep.items()}
            write_packed(self.keep, kept, self.checkpoint.files)
        except OSError as err:
            warnings.warn(f"packed weights are not kept: {self.keep}: {err.strerror}", stacklevel=2)

    def row_runs(
        self, tensor: StoredTensor, name: str, size: int, step: int
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """(first row, the stored rows that come there), about so many at a time, in whole panels. Fix-ups of
        matrices move rows and nothing else."""
        step = max(1, step // PANEL) * PANEL
        order = np.arange(size)
        fixup = self.family.fixups.get(template(name))
        if fixup:
            order = fixup(order[:, None], self.spec)[:, 0].astype(np.int64)
        row_bytes, mapped = tensor.nbytes // size, 0
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
            for at, ids in self.row_runs(tensor, name, size, CHUNK // width):
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


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
