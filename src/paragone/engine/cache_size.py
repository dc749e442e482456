"""How many blocks of keys and values an engine has."""

from paragone.engine.config import EngineConfig
from paragone.engine.resources import available_memory_bytes
from paragone.errors import UsageError
from paragone.model.decoder import Decoder
from paragone.model.paged import block_bytes, reaches_of

CACHE_SHARE = 0.25  # of the memory that is free, where nothing else is asked for


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
