"""Keys and values of the tokens seen so far, one contiguous slot a token."""

import torch
from torch import Tensor

from paragone.model.spec import ModelSpec

STEP = 64  # capacity is a multiple of this


class KVCache:
    """For each layer, keys and values (B, K, capacity, E); the first `length` slots are filled.

    All rows share the slot numbers: shorter prompts are padded on the left.
    """

    def __init__(
        self, spec: ModelSpec, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.spec, self.batch, self.length = spec, batch, 0
        self.capacity = -(-capacity // STEP) * STEP
        shape = (batch, spec.num_key_value_heads, self.capacity, spec.head_dim)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in spec.layers]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in spec.layers]

    @property
    def nbytes(self) -> int:
        """Bytes of the filled slots."""
        per_slot = self.spec.kv_bytes_per_token(self.keys[0].element_size())
        return self.batch * self.length * per_slot

    def extend(self, layer: int, k_BKTE: Tensor, v_BKTE: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Writes T tokens at slots length..length+T and returns slots [first, length + T) of the layer."""
        end = self.length + k_BKTE.shape[2]
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, self.length : end] = k_BKTE
        values[:, :, self.length : end] = v_BKTE
        return keys[:, :, first:end], values[:, :, first:end]

    def reserve(self, slots: int) -> None:
        """Makes room for `slots` in all, by at least doubling, so that growing stays cheap."""
        if slots <= self.capacity:
            return
        self.capacity = -(-max(slots, 2 * self.capacity) // STEP) * STEP
        for tensors in (self.keys, self.values):
            for i, old in enumerate(tensors):
                new = old.new_empty(*old.shape[:2], self.capacity, old.shape[3])
                new[:, :, : self.length] = old[:, :, : self.length]
                tensors[i] = new

    def keep_rows(self, rows: Tensor) -> None:
        """Keeps only these rows of the batch, in this order."""
        self.batch = len(rows)
        for tensors in (self.keys, self.values):
            for i, old in enumerate(tensors):
                tensors[i] = old[rows]

    def truncate(self, length: int) -> None:
        """Forgets all slots from `length` on."""
        self.length = min(self.length, length)
