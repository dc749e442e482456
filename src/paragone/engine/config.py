"""How much an engine does at once. No torch here."""

from dataclasses import dataclass

from paragone.errors import UsageError


@dataclass(frozen=True)
class EngineConfig:
    """How much is done at once. `kv_cache_bytes` None: a quarter of the memory that is free, at most what
    `max_num_seqs` full contexts need. `deterministic`: tokens and log-probabilities of an answer are the same
    to the bit, whatever runs beside it, however it is cut, in any order and on any number of threads.
    `prompt_lookup`: guesses what comes next from what came after the same words before, where that pays."""

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    block_size: int = 16
    kv_cache_bytes: int | None = None
    kv_cache_bits: int = 16  # or 8: half the memory, at a small loss; 16 is whatever type the model runs in
    find_prefixes: bool = True
    deterministic: bool = False
    prompt_lookup: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError naming the field that is out of bounds."""
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1 << 20:
                raise UsageError(f"{name} is {value!r}, not a whole number from 1 to {1 << 20}")
        if self.kv_cache_bits not in (8, 16):
            raise UsageError(f"kv_cache_bits is {self.kv_cache_bits!r}, not 8 or 16")
