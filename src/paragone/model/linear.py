"""Weight matrices as callables, by the form in which they are kept."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from paragone.checkpoint.tensors import StoredTensor
from paragone.kernels import native
from paragone.ops import linear as ops
from paragone.ops.packed import PackedMatrix, check_rows


class Linear:
    """y = x Wᵀ + b, with W (out_features, in_features) in one part or several, stacked by rows: numbers of
    one floating type, in memory or in the model's file, compressed ones, or packed codes.

    Plain objects rather than torch modules: at one token a module's bookkeeping costs an eighth of a step.
    """

    def __init__(self, parts: Sequence[ops.Part], bias: Tensor | None = None) -> None:
        first = parts[0]
        self.out_features = sum(len(part) for part in parts)
        self.in_features = first.shape[1] if isinstance(first, Tensor) else first.width
        self.parts, self.bias = list(parts), bias

    @property
    def weight_bytes(self) -> int:
        """Bytes that one product reads, the bias left out."""
        return sum(part.nbytes for part in self.parts)

    def __call__(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.parts, self.bias)


class Rows:
    """Room (N, width) of float32 on the CPU, and where it is: what a tensor is asked for, even its address or
    its length, comes from memory that weights have pushed out of the caches, 10 us each in every step."""

    __slots__ = ("address", "count", "tensor")

    def __init__(self, tensor_ND: Tensor) -> None:
        self.tensor, self.address, self.count = tensor_ND, tensor_ND.data_ptr(), len(tensor_ND)

    @classmethod
    @torch.inference_mode(mode=False)  # else they could not be written outside of it
    def empty(cls, count: int, width: int) -> "Rows":
        """Room that is not filled yet."""
        return cls(torch.empty(count, width))


class Embedding:
    """Token embeddings: ids (...) to rows (..., hidden_size)."""

    weight: Tensor | None = None  # where it is in memory

    def __call__(self, ids: Tensor) -> Tensor:
        raise NotImplementedError

    def put_rows(self, ids: Sequence[int], to: Rows) -> None:
        """Rows in float32."""
        to.tensor.copy_(self(torch.tensor(ids)))


def as_torch(tensor: StoredTensor, numbers: NDArray[np.generic]) -> Tensor:
    """Numbers read from a stored tensor as a torch tensor: bfloat16 comes as its bits."""
    out = torch.from_numpy(numbers)
    return out.view(torch.bfloat16) if tensor.type.name == "BF16" else out


class StoredEmbedding(Embedding):
    """Token embeddings left in the model's file: a step reads the few rows that it needs."""

    def __init__(self, tensor: StoredTensor, dtype: torch.dtype) -> None:
        self.tensor, self.dtype = tensor, dtype

    def __call__(self, ids: Tensor) -> Tensor:
        return self._read(ids.flatten().tolist()).reshape(*ids.shape, -1)

    def put_rows(self, ids: Sequence[int], to: Rows) -> None:
        """As `Embedding.put_rows`."""
        tensor = self.tensor
        check_rows(ids, tensor.num_rows)
        if native is not None and tensor.type.name == "BF16":
            file, width = tensor.file, tensor.shape[1]
            if native.read_rows(file.descriptor, tensor.offset, width, ids, to.address):
                return
        to.tensor.copy_(self._read(ids))  # which says what is the matter where the file cannot be read

    def _read(self, ids: Sequence[int]) -> Tensor:
        check_rows(ids, self.tensor.num_rows)
        return as_torch(self.tensor, self.tensor.read_rows(ids)).to(self.dtype)


class DenseEmbedding(Embedding):
    """Token embeddings in the memory of the device; the weight may be that of a tied head."""

    def __init__(self, weight_VD: Tensor) -> None:
        self.weight: Tensor = weight_VD

    def __call__(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class TiedEmbedding(Embedding):
    """The rows of a head that loses nothing: of a file's own integers, or compressed numbers."""

    def __init__(self, weight_VD: ops.Matrix, dtype: torch.dtype) -> None:
        self.matrix, self.dtype = weight_VD, dtype

    def __call__(self, ids: Tensor) -> Tensor:
        return self.matrix.rows_of(ids.flatten().tolist()).to(self.dtype).reshape(*ids.shape, -1)

    def put_rows(self, ids: Sequence[int], to: Rows) -> None:
        """As `Embedding.put_rows`."""
        if not isinstance(self.matrix, PackedMatrix) or not self.matrix.put_rows_of(ids, to.address):
            to.tensor.copy_(self.matrix.rows_of(ids))
