"""The deterministic mode: the same to the bit, whatever is batched, cut, found, preempted, or on how many threads."""

import random
from dataclasses import replace

import pytest
import torch

from paragone.checkpoint.checkpoint import open_checkpoint
from paragone.engine.config import EngineConfig
from paragone.engine.engine import Engine
from paragone.engine.params import SamplingParams
from paragone.engine.request import Request
from paragone.errors import BadConfiguration
from paragone.kernels import native
from paragone.model.load import load_decoder
from paragone.model.paged import block_bytes, reaches_of
from paragone.ops.choose import implementation
from paragone.ops.threads import with_threads
from tests.engine.test_engine import KINDS, prompts
from tests.tiny import CASES

CONFIG = EngineConfig(deterministic=True, kv_cache_bytes=20_000_000, block_size=4)


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    next(c for c in CASES if c.name == request.param).save(path)
    return path


def requests(decoder, count, seed):
    rng = random.Random(seed)
    out = []
    for ids in prompts(decoder, count, seed, longest=90):
        temperature = rng.choice([0.0, 1.0])
        params = SamplingParams(
            max_tokens=rng.randrange(3, 14), temperature=temperature, seed=5, top_p=0.9, ignore_eos=True,
            logprobs=3, prompt_logprobs=rng.choice([None, 1]),
        )  # fmt: skip
        out.append(Request(ids, params))
    return out


def barely(decoder, asked, config):
    longest = max(len(r.prompt_ids) + r.params.max_tokens for r in asked)
    each = [
        block_bytes(
            decoder.spec, reach, config.block_size, decoder.dtype, eight_bit=config.kv_cache_bits == 8
        )
        for reach in reaches_of(decoder.spec)
    ]
    return (int(1.1 * longest / config.block_size) + 2) * sum(each)


def seen(completion):
    return completion.token_ids, completion.logprobs, completion.prompt_logprobs


def answers(decoder, tokenizer, asked, config, order=None):
    engine = Engine(decoder, tokenizer, config)
    order = order or list(range(len(asked)))
    done = engine.run([asked[i] for i in order])
    return [seen(done[order.index(i)]) for i in range(len(asked))], engine


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_bit_for_bit(folder, precision, bits, smollm2_tokenizer):
    decoder = load_decoder(open_checkpoint(folder), precision)
    config = replace(CONFIG, kv_cache_bits=bits)
    asked = requests(decoder, 9, seed=2)
    alone = [answers(decoder, smollm2_tokenizer, [r], config)[0][0] for r in asked]

    def check(got, what):
        for n, (one, two) in enumerate(zip(got[0], alone, strict=True)):
            assert one == two, (what, n)
        return got[1]

    check(answers(decoder, smollm2_tokenizer, asked, config), "together")
    order = random.Random(1).sample(range(9), 9)
    check(answers(decoder, smollm2_tokenizer, asked, config, order), "another order")
    small = replace(config, max_num_batched_tokens=7)
    check(answers(decoder, smollm2_tokenizer, asked, small), "chunks")
    tight = replace(config, max_num_batched_tokens=40, kv_cache_bytes=barely(decoder, asked, config))
    engine = check(answers(decoder, smollm2_tokenizer, asked, tight), "preempted")
    assert engine.scheduler.num_preemptions > 0 or None not in engine.blocks.reaches  # windows need little
    engine = check(answers(decoder, smollm2_tokenizer, asked, config), "first of two")
    again = [seen(c) for c in engine.run(asked)]
    check((again, engine), "found again")
    assert engine.blocks.hits > 0
    with with_threads(1):
        check(answers(decoder, smollm2_tokenizer, asked, config), "one thread")


def test_products_that_depend_on_the_rows_are_seen(smollm2_path, smollm2_tokenizer, monkeypatch):
    """The test above can fail: where several rows are summed up in another order than one, as PyTorch does on
    some processors. The kernels do not, but for matrix units."""
    from paragone.engine.load import load_model

    whole = torch.nn.functional.linear

    def uneven(x, weight, bias=None):
        if x.numel() == x.shape[-1]:
            return whole(x, weight, bias)
        half = x.shape[-1] // 2
        return whole(x[..., :half], weight[:, :half], bias) + whole(x[..., half:], weight[:, half:])

    asked = [
        Request([5 + 7 * n, *range(100, 112)], SamplingParams(max_tokens=4, logprobs=0, ignore_eos=True))
        for n in range(4)
    ]
    config = EngineConfig(kv_cache_bytes=200_000_000)

    def is_the_same(config):
        decoder = load_model(smollm2_path, "smollm2", "bf16").decoder
        alone = [answers(decoder, smollm2_tokenizer, [r], config)[0][0] for r in asked]
        return answers(decoder, smollm2_tokenizer, asked, config)[0] == alone

    assert is_the_same(replace(config, deterministic=True))
    if "amx" not in native.level:
        assert is_the_same(config)
    monkeypatch.setattr("torch.nn.functional.linear", uneven)
    with implementation("torch"):
        assert not is_the_same(config)


def test_where_it_cannot_be_kept_it_is_refused(smollm2_path, smollm2_tokenizer):
    from paragone.engine.load import load_model

    decoder = load_model(smollm2_path, "smollm2", "fp32").decoder
    with pytest.raises(BadConfiguration, match="it computes in float32"):
        Engine(decoder, smollm2_tokenizer, CONFIG)
