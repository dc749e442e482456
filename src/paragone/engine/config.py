"""How much an engine does at once, and how its memory is shared out."""

from dataclasses import dataclass

from paragone.engine.resources import available_memory_bytes
from paragone.errors import UsageError
from paragone.model.decoder import Decoder
from paragone.model.paged import block_bytes, reaches_of

CACHE_SHARE = 0.25  # of the memory that is free, for keys and values, where nothing else is asked for


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


def num_blocks(decoder: Decoder, config: EngineConfig, draft: Decoder | None = None) -> list[int]:
    """Blocks of each pool: as many tokens as the memory allows; layers with a reach need no more than it for
    every sequence that runs. A draft model gets memory for as many tokens. Raises UsageError where the memory
    does not hold two."""
    spec, size = decoder.spec, config.block_size
    reaches = reaches_of(spec)
    eight_bit = config.kv_cache_bits == 8
    each = [block_bytes(spec, reach, size, decoder.dtype, eight_bit=eight_bit) for reach in reaches]
    budget = config.kv_cache_bytes
    if budget is None:
        budget = int(CACHE_SHARE * available_memory_bytes())
    if draft is not None:
        theirs = sum(block_bytes(draft.spec, reach, size, draft.dtype) for reach in reaches_of(draft.spec))
        budget = budget * sum(each) // (sum(each) + theirs)
    full = -(-spec.max_position_embeddings // size) * config.max_num_seqs

    def counts(blocks: int) -> list[int]:
        out = []
        for reach in reaches:
            step = config.max_num_batched_tokens
            most = blocks if reach is None else ((reach + step) // size + 2) * config.max_num_seqs
            out.append(min(blocks, most))
        return out

    low, high = 0, full
    while low < high:  # the most blocks that fit
        middle = (low + high + 1) // 2
        fits = sum(n * b for n, b in zip(counts(middle), each, strict=True)) <= budget
        low, high = (middle, high) if fits else (low, middle - 1)
    if low < 2:
        raise UsageError(f"{budget:,} bytes do not hold two blocks of keys and values ({sum(each):,} each)")
    return counts(low)
