"""Keys and values of the tokens seen so far. Layers that look back only so far keep only that much."""

from dataclasses import dataclass

import torch
from torch import Tensor

from paragone.model.spec import ModelSpec

STEP = 64  # a layer that sees everything has room for a multiple of this
AHEAD = 256  # a window moves on by so many slots at a time, so that moving it costs next to nothing
BEHIND = 64  # slots kept before the window: an answer may be taken back by so much without computing anew


@dataclass
class _Room:
    """The slots that layers of one reach hold: `capacity` of them from `first` on."""

    reach: int | None
    first: int
    capacity: int

    def limit(self, slots: int) -> int:
        """The most that is ever needed, where the reach says so, for `slots` in all."""
        if self.reach is None:
            return slots
        return min(slots, self.reach + min(self.reach, AHEAD) + min(self.reach, BEHIND))


class KVCache:
    """For each layer, keys and values (B, 2K, capacity, E), the K key heads first, of the slots from its
    `first` up to `length`.

    All rows share the slot numbers. Layers with a sliding window or with chunks let go of the slots that no
    later query can see.
    """

    def __init__(
        self, spec: ModelSpec, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.spec, self.batch, self.length = spec, batch, 0
        self.rooms = {reach: _Room(reach, 0, 0) for reach in {spec.reach(layer) for layer in spec.layers}}
        for room in self.rooms.values():
            room.capacity = room.limit(_rounded(capacity))
        self.room_of = [self.rooms[spec.reach(layer)] for layer in spec.layers]
        heads = 2 * spec.num_key_value_heads
        self.layers = [
            torch.empty((batch, heads, room.capacity, spec.head_dim), dtype=dtype, device=device)
            for room in self.room_of
        ]

    @property
    def reserved_bytes(self) -> int:
        """Bytes of all slots, filled or not."""
        return sum(layer.nbytes for layer in self.layers)

    def extend(self, layer: int, kv_BTJE: Tensor, first: int) -> Tensor:
        """Writes T tokens' keys and values (B, T, 2K, E) at slots length..length+T; returns the layer's
        slots [first, length + T) as (B, 2K, slots, E)."""
        slots, offset = self.layers[layer], self.room_of[layer].first
        start = self.length - offset
        end = start + kv_BTJE.shape[1]
        if kv_BTJE.shape[1] == 1:
            slots[:, :, start] = kv_BTJE[:, 0]
        else:
            slots[:, :, start:end] = kv_BTJE.transpose(1, 2)
        return slots[:, :, first - offset : end]

    def reserve(self, slots: int) -> None:
        """Makes room for `slots` in all: windows move on, what sees everything at least doubles, so that
        growing stays cheap."""
        for room in self.rooms.values():
            if slots - room.first > room.capacity:
                self._move(room, slots)

    def _move(self, room: _Room, slots: int) -> None:
        first = room.first
        if room.reach is not None:
            first = max(first, self.length - (room.reach - 1) - min(room.reach, BEHIND))
        needed = slots - first
        capacity = max(needed, room.limit(_rounded(max(needed, 2 * room.capacity))))
        for i, old in enumerate(self.layers):
            if self.room_of[i] is not room:
                continue
            kept = old[:, :, first - room.first : self.length - room.first]
            if capacity == room.capacity:
                kept = kept.clone()  # it may overlap the place where it goes
            else:
                self.layers[i] = old.new_empty(*old.shape[:2], capacity, old.shape[3])
            self.layers[i][:, :, : kept.shape[2]] = kept
        room.first, room.capacity = first, capacity

    def truncate(self, length: int) -> None:
        """Forgets all slots from `length` on; everything, where a window let go of what `length` needs."""
        if length >= self.length:
            return
        gone = any(r.first > max(0, length - (r.reach or length) + 1) for r in self.rooms.values())
        self.length = 0 if gone else length
        if self.length == 0:
            for room in self.rooms.values():
                room.first = 0


def _rounded(slots: int) -> int:
    return -(-slots // STEP) * STEP
