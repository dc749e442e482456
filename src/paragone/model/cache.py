"""Keys and values of the tokens seen so far, one contiguous slot a token."""

import torch
from torch import Tensor

from paragone.model.spec import ModelSpec

STEP = 64  # capacity is a multiple of this


class KVCache:
    """For each layer, keys and values (B, 2K, capacity, E), the K key heads first; `length` slots are filled.

    All rows share the slot numbers: shorter prompts are padded on the left.
    """

    def __init__(
        self, spec: ModelSpec, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.spec, self.batch, self.length = spec, batch, 0
        self.capacity = -(-capacity // STEP) * STEP
        shape = (batch, 2 * spec.num_key_value_heads, self.capacity, spec.head_dim)
        self.layers = [torch.empty(shape, dtype=dtype, device=device) for _ in spec.layers]

    @property
    def nbytes(self) -> int:
        """Bytes of the filled slots."""
        per_slot = self.spec.kv_bytes_per_token(self.layers[0].element_size())
        return self.batch * self.length * per_slot

    @property
    def reserved_bytes(self) -> int:
        """Bytes of all slots, filled or not."""
        return sum(layer.nbytes for layer in self.layers)

    def extend(self, layer: int, kv_BTJE: Tensor, first: int) -> Tensor:
        """Writes T tokens' keys and values (B, T, 2K, E) at slots length..length+T; returns the layer's
        slots [first, length + T) as (B, 2K, slots, E)."""
        end = self.length + kv_BTJE.shape[1]
        slots = self.layers[layer]
        if kv_BTJE.shape[1] == 1:
            slots[:, :, self.length] = kv_BTJE[:, 0]
        else:
            slots[:, :, self.length : end] = kv_BTJE.transpose(1, 2)
        return slots[:, :, first:end]

    def reserve(self, slots: int) -> None:
        """Makes room for `slots` in all, by at least doubling, so that growing stays cheap."""
        if slots <= self.capacity:
            return
        self.capacity = -(-max(slots, 2 * self.capacity) // STEP) * STEP
        for i, old in enumerate(self.layers):
            new = old.new_empty(*old.shape[:2], self.capacity, old.shape[3])
            new[:, :, : self.length] = old[:, :, : self.length]
            self.layers[i] = new

    def keep_rows(self, rows: Tensor) -> None:
        """Keeps only these rows of the batch, in this order."""
        self.batch = len(rows)
        self.layers = [old[rows] for old in self.layers]

    def truncate(self, length: int) -> None:
        """Forgets all slots from `length` on."""
        self.length = min(self.length, length)
