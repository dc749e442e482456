"""Weight matrices as callables, by the form in which they are kept."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from paragone.checkpoint.tensors import StoredTensor
from paragone.ops import linear as ops

MANY_ROWS = 32


class Linear:
    """y = x Wᵀ + b, with W (out_features, in_features) kept in some form. Subclasses say which.

    Plain objects rather than torch modules: at one token a module's bookkeeping costs an eighth of a step.
    """

    form: str

    def __init__(self, out_features: int, in_features: int, bias: Tensor | None) -> None:
        self.out_features, self.in_features, self.bias = out_features, in_features, bias

    @property
    def weight_bytes(self) -> int:
        """Bytes that one product reads, the bias left out."""
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Embedding:
    """Token embeddings: ids (...) to rows (..., hidden_size)."""

    weight: Tensor | None = None  # where it is in memory

    def __call__(self, ids: Tensor) -> Tensor:
        raise NotImplementedError


def as_torch(tensor: StoredTensor, numbers: NDArray[np.generic]) -> Tensor:
    """Numbers read from a stored tensor as a torch tensor: bfloat16 comes as its bits."""
    out = torch.from_numpy(numbers)
    return out.view(torch.bfloat16) if tensor.type.name == "BF16" else out


class StoredEmbedding(Embedding):
    """Token embeddings left in the model's file: a step reads the few rows that it needs."""

    def __init__(self, tensor: StoredTensor, dtype: torch.dtype) -> None:
        self.tensor, self.dtype = tensor, dtype

    def __call__(self, ids: Tensor) -> Tensor:
        rows = as_torch(self.tensor, self.tensor.gather(ids.reshape(-1).numpy())).to(self.dtype)
        if ids.numel() > MANY_ROWS:  # a prompt touches pages all over the file
            self.tensor.file.forget()
        return rows.reshape(*ids.shape, -1)


class DenseEmbedding(Embedding):
    """Token embeddings in the memory of the device; the weight may be that of a tied head."""

    def __init__(self, weight_VD: Tensor) -> None:
        self.weight: Tensor = weight_VD

    def __call__(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class DenseLinear(Linear):
    """Row-major numbers of one floating type."""

    form = "dense"

    def __init__(self, weight_ND: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(weight_ND.shape[0], weight_ND.shape[1], bias)
        self.weight = weight_ND

    @property
    def weight_bytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return ops.dense_linear(x, self.weight, self.bias)


class PackedLinear(Linear):
    """bfloat16 in oneDNN's blocked layout, in runs of rows; for products on the CPU only."""

    form = "packed"

    def __init__(self, blocks: list[Tensor], shape: tuple[int, int], bias: Tensor | None = None) -> None:
        super().__init__(*shape, bias)
        self.blocks = blocks

    @property
    def weight_bytes(self) -> int:
        return 2 * self.out_features * self.in_features

    def __call__(self, x: Tensor) -> Tensor:
        if len(self.blocks) == 1:
            return ops.packed_linear(x, self.blocks[0], self.bias)
        y = torch.cat([ops.packed_linear(x, block, None) for block in self.blocks], dim=-1)
        return y if self.bias is None else y.add_(self.bias)


class MappedLinear(PackedLinear):
    """bfloat16 that a file holds as it is needed: used in place for prompts, packed at the first single
    token. Loading then costs nothing, and a text that is only scored never pays for packing."""

    def __init__(
        self,
        parts: list[StoredTensor],
        pack: Callable[[], list[Tensor]],
        shape: tuple[int, int],
        bias: Tensor | None = None,
    ) -> None:
        super().__init__([], shape, bias)
        self.parts, self.pack = parts, pack

    def __call__(self, x: Tensor) -> Tensor:
        if not self.blocks:
            if x.numel() > x.shape[-1]:
                rows = [ops.dense_linear(x, as_torch(p, p.rows()), None) for p in self.parts]
                y = rows[0] if len(rows) == 1 else torch.cat(rows, dim=-1)
                return y if self.bias is None else y.add_(self.bias)
            self.blocks = self.pack()
        return super().__call__(x)


class Int8Linear(Linear):
    """int8 codes with one bfloat16 scale a row."""

    form = "int8"

    def __init__(self, codes_ND: Tensor, scale_N: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(codes_ND.shape[0], codes_ND.shape[1], bias)
        self.codes = codes_ND
        self.scale = scale_N

    @property
    def weight_bytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        y = ops.int8_linear(x, self.codes, self.scale)
        return y if self.bias is None else y + self.bias


class Int4Linear(Linear):
    """4-bit codes with a bfloat16 scale and zero for every 32 inputs of a row.

    On the CPU the codes are kept only in PyTorch's packed layout, elsewhere two to a byte.
    """

    form = "int4"

    def __init__(self, codes_ND: Tensor, scale_zero_GN2: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(codes_ND.shape[0], codes_ND.shape[1], bias)
        self.is_packed = ops.can_pack_int4(self.out_features, self.in_features, codes_ND.device)
        codes = ops.pack_int4(codes_ND) if self.is_packed else codes_ND[:, ::2] | codes_ND[:, 1::2] << 4
        self.codes = codes
        self.scale_zero = scale_zero_GN2

    @property
    def weight_bytes(self) -> int:
        return self.codes.nbytes + self.scale_zero.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        if self.is_packed:
            y = ops.int4_packed_linear(x, self.codes, self.scale_zero)
        else:
            pairs = torch.stack((self.codes & 15, self.codes >> 4), dim=-1)
            y = ops.int4_linear_reference(x, pairs.flatten(1), self.scale_zero)
        return y if self.bias is None else y + self.bias
