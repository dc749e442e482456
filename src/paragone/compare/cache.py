"""What keys and values in eight bits cost: bits per byte of texts with both kinds of cache, by the engine."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from paragone.compare.quality import windows_of
from paragone.engine.config import EngineConfig
from paragone.engine.engine import Engine
from paragone.engine.model import Model
from paragone.engine.params import SamplingParams
from paragone.engine.request import Request
from paragone.errors import ParagoneError


@dataclass(frozen=True)
class CacheQuality:
    """Bits per byte with a kind of cache, and the bytes that a block of it takes for each token."""

    bits_per_byte: float
    bytes_per_token: float


def cache_quality(model: Model, text: str) -> Iterator[CacheQuality]:
    """Of a cache as it is, and of one in eight bits. Each window of the text is a prompt whose
    log-probabilities are asked for, so every token but the first is judged by what the cache gives back of
    those before it."""
    runs = windows_of(model, text, spare=1)
    size = sum(len(model.tokenizer.token_bytes(token)) for ids in runs for token in ids[1:])
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    for bits in (16, 8):
        config = EngineConfig(kv_cache_bits=bits, max_num_seqs=1, find_prefixes=False)
        engine = Engine(model.decoder, model.tokenizer, config)
        total = 0.0
        for ids in runs:
            answer = engine.run([Request(ids, params)])[0]
            if answer.error is not None:
                raise ParagoneError(answer.error)
            total -= sum(entry.logprob for entry in answer.prompt_logprobs)
        each = sum(engine.runner.cache.block_bytes) / config.block_size
        yield CacheQuality(total / math.log(2) / size, each)
