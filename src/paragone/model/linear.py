"""Weight matrices as callables, by the form in which they are kept."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from paragone.checkpoint.tensors import StoredTensor
from paragone.ops import linear as ops
from paragone.ops.choose import kernels_for

MANY_ROWS = 32


class Linear:
    """y = x Wᵀ + b, with W (out_features, in_features) kept in some form. Subclasses say which.

    Plain objects rather than torch modules: at one token a module's bookkeeping costs an eighth of a step.
    """

    form: str
    kernel: ops.KernelMatrix | None = None

    def __init__(self, out_features: int, in_features: int, bias: Tensor | None) -> None:
        self.out_features, self.in_features, self.bias = out_features, in_features, bias

    @property
    def weight_bytes(self) -> int:
        """Bytes that one product reads, the bias left out."""
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def unrounded(self, x: Tensor) -> Tensor:
        """y in float32 where a kernel can give it, else in x's type: bfloat16 has many ties among logits."""
        if self.kernel is not None and self.bias is None and self.kernel.takes(x):
            return self.kernel.multiply_unrounded(x)
        return self(x)


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

    def __init__(self, tensor: StoredTensor, dtype: torch.dtype, *, file_in_use: bool) -> None:
        """`file_in_use`: other weights are used where they lie in the file, so its pages stay."""
        self.tensor, self.dtype, self.file_in_use = tensor, dtype, file_in_use

    def __call__(self, ids: Tensor) -> Tensor:
        rows = as_torch(self.tensor, self.tensor.gather(ids.reshape(-1).numpy())).to(self.dtype)
        if ids.numel() > MANY_ROWS and not self.file_in_use:  # a prompt touches pages all over the file
            self.tensor.file.forget()
        return rows.reshape(*ids.shape, -1)


class DenseEmbedding(Embedding):
    """Token embeddings in the memory of the device; the weight may be that of a tied head."""

    def __init__(self, weight_VD: Tensor) -> None:
        self.weight: Tensor = weight_VD

    def __call__(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class DenseLinear(Linear):
    """Row-major numbers of one floating type, in memory or in the model's file, in one part or several."""

    form = "dense"

    def __init__(self, parts: list[Tensor], bias: Tensor | None = None) -> None:
        super().__init__(sum(len(part) for part in parts), parts[0].shape[1], bias)
        self.parts = parts
        self.kernel = ops.kernel_matrix("bf16", [(part, None) for part in parts], self.in_features, bias)

    @property
    def weight_bytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def __call__(self, x: Tensor) -> Tensor:
        if self.kernel is not None and self.kernel.takes(x):
            return self.kernel.multiply(x)
        return ops.dense_linear(x, self.parts, self.bias)


class Int8Linear(Linear):
    """int8 codes with one bfloat16 scale a row."""

    form = "int8"

    def __init__(self, codes_ND: Tensor, scale_N: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(codes_ND.shape[0], codes_ND.shape[1], bias)
        self.codes = codes_ND
        self.scale = scale_N
        self.kernel = ops.kernel_matrix("int8", [(codes_ND, scale_N)], self.in_features, bias)

    @property
    def weight_bytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        if self.kernel is not None and self.kernel.takes(x):
            return self.kernel.multiply(x)
        y = ops.int8_linear(x, self.codes, self.scale)
        return y if self.bias is None else y + self.bias


class Int4Linear(Linear):
    """4-bit codes, two to a byte, with a bfloat16 scale and zero for every 32 inputs of a row.

    Where PyTorch's int4 product has to do, codes and scales are kept in its layout instead.
    """

    form = "int4"

    def __init__(self, codes_ND: Tensor, scale_zero_NG2: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(codes_ND.shape[0], 2 * codes_ND.shape[1], bias)
        self.is_packed = ops.can_pack_int4(self.out_features, self.in_features, codes_ND.device)
        self.codes, self.scale_zero = codes_ND, scale_zero_NG2
        if self.is_packed:
            self.codes = ops.pack_int4(ops.int4_split(codes_ND))
            self.scale_zero = scale_zero_NG2.transpose(0, 1).contiguous()
        self.kernel = ops.kernel_matrix("int4", [(self.codes, self.scale_zero)], self.in_features, bias)

    @property
    def weight_bytes(self) -> int:
        return self.codes.nbytes + self.scale_zero.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        if self.kernel is not None and kernels_for(x) is not None:
            return self.kernel.multiply(x) if self.kernel.takes(x) else self.kernel.multiply_widened(x)
        if self.is_packed:
            y = ops.int4_packed_linear(x, self.codes, self.scale_zero)
        else:
            y = ops.int4_linear_reference(x, ops.int4_split(self.codes), self.scale_zero)
        return y if self.bias is None else y + self.bias
