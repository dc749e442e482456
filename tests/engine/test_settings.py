"""What requests may ask for beside the first version's settings: n, masks, biases, ends, log-probabilities."""

import threading
from dataclasses import replace

import pytest
import torch

from paragone.engine.config import EngineConfig
from paragone.engine.engine import Engine
from paragone.engine.params import SamplingParams
from paragone.engine.request import Request
from paragone.errors import ParagoneError, UsageError

TEXT = "The capital of France is"


@pytest.fixture(scope="module")
def exact(smollm2_path):
    from paragone.engine.load import load_model

    return load_model(smollm2_path, "smollm2", "fp32")


def test_n_answers_share_the_prompt_and_draw_for_themselves(smollm2):
    prompt = smollm2.encode(TEXT + " a city. " * 12)
    settings = {"max_tokens": 10, "temperature": 1.0, "ignore_eos": True}
    config = EngineConfig(deterministic=True)  # or a row's last digits depend on how many there are
    together, *alone = (
        replace(smollm2, engine_config=config).generate(prompt, n=n, seed=seed, **settings)
        for n, seed in [(4, 7), *((1, 7 + choice) for choice in range(4))]
    )
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert len({tuple(c.token_ids) for c in together}) == 4
    whole = len(prompt) // 16 * 16
    assert [c.cached_tokens for c in together] == [0, whole, whole, whole]
    grouped = smollm2.generate(["a", "b"], n=2, max_tokens=2)
    assert [len(group) for group in grouped] == [2, 2]


def test_n_answers_and_aborts(exact):
    engine = Engine(exact.decoder, exact.tokenizer)
    request = Request(exact.encode(TEXT), SamplingParams(n=3, max_tokens=50, ignore_eos=True))
    for steps in (0, 1, 2, 5):
        number = engine.add(request)
        for _ in range(steps):
            engine.step()
            engine.check()
        chunks = engine.abort(number)
        assert sorted(c.choice for c in chunks) == [0, 1, 2]
        assert all(c.finish_reason == "cancelled" for c in chunks)
        assert not engine.has_work()
        engine.check()


@pytest.mark.parametrize("budget", [512, 5])
def test_prompt_logprobs_equal_those_of_scoring_the_text(exact, budget):
    ids = exact.encode(TEXT + " Paris, and that of Italy is Rome.")
    model = replace(exact, engine_config=EngineConfig(max_num_batched_tokens=budget))
    for _ in range(2):  # also where the beginning could be found in the cache
        answer = model.generate(ids, max_tokens=4, prompt_logprobs=2)
        assert [entry.token_id for entry in answer.prompt_logprobs] == ids[1:]
        got = [entry.logprob for entry in answer.prompt_logprobs]
        assert got == pytest.approx(exact.logprobs(ids), abs=1e-4)
        assert all(entry.top[0][1] >= entry.logprob for entry in answer.prompt_logprobs)


def test_biases_and_allowed_tokens(exact):
    best = exact.generate(TEXT, max_tokens=1).token_ids[0]
    without = exact.generate(TEXT, max_tokens=1, logit_bias={best: -100.0}).token_ids[0]
    assert without != best
    assert exact.generate(TEXT, max_tokens=3, logit_bias={17: 100.0}).token_ids == [17] * 3
    answer = exact.generate(
        TEXT, max_tokens=8, allowed_token_ids=[20, 21, 22], temperature=2.0, ignore_eos=True
    )
    assert set(answer.token_ids) <= {20, 21, 22}
    batch = Engine(exact.decoder, exact.tokenizer).run(
        [
            Request(exact.encode(TEXT), SamplingParams(max_tokens=4, allowed_token_ids=(30,))),
            Request(exact.encode(TEXT), SamplingParams(max_tokens=4)),
        ]
    )
    assert batch[0].token_ids == [30] * 4
    assert batch[1].token_ids == exact.generate(TEXT, max_tokens=4).token_ids


def test_masks_follow_the_answer(exact):
    """Alternately one of two tokens: the hook sees exactly the answer so far, chunked prompt or not."""
    seen = []

    def allowed(answer):
        seen.append(list(answer))
        mask = torch.zeros(exact.decoder.spec.vocab_size, dtype=torch.bool)
        mask[40 if len(answer) % 2 else 41] = True
        return mask

    def nothing(_answer):
        return torch.zeros(exact.decoder.spec.vocab_size, dtype=torch.bool)

    params = SamplingParams(max_tokens=5)
    engine = Engine(exact.decoder, exact.tokenizer, EngineConfig(max_num_batched_tokens=3))
    ids = exact.encode(TEXT)
    answers = engine.run(
        [
            Request(ids, params, allowed=lambda: allowed),
            Request(ids, params, allowed=lambda: nothing),
            Request(ids, params),
        ]
    )
    assert answers[0].token_ids == [41, 40, 41, 40, 41]
    assert seen == [answers[0].token_ids[:n] for n in range(5)]
    assert (answers[1].finish_reason, answers[1].error) == ("error", "no token is allowed here")
    assert answers[2].token_ids == exact.generate(TEXT, max_tokens=5).token_ids


def test_least_length(exact):
    ask = [{"role": "user", "content": "What is the capital of France?"}]
    short = exact.chat(ask, max_tokens=60)
    assert short.finish_reason == "stop"
    least = len(short.token_ids) + 5
    longer = exact.chat(ask, max_tokens=60, min_tokens=least)
    assert len(longer.token_ids) > least or longer.finish_reason == "length"
    assert longer.token_ids[: len(short.token_ids) - 1] == short.token_ids[:-1]
    first = exact.generate(TEXT, max_tokens=10).token_ids
    stopped = exact.generate(TEXT, max_tokens=10, stop_token_ids=[first[3]])
    assert (stopped.token_ids, stopped.finish_reason) == (first[: first.index(first[3]) + 1], "stop")
    text = exact.generate(TEXT, max_tokens=10).text
    word = text.split()[0]
    assert word not in exact.generate(TEXT, max_tokens=10, stop=word).text
    assert exact.generate(TEXT, max_tokens=10, stop=word, min_tokens=5).text.startswith(
        text[: text.index(word)] + word
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"n": 10**6}, "n is 1000000"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens is 9"),
        ({"logit_bias": {5: 101.0}}, "logit_bias is 101.0"),
        ({"logit_bias": 3}, "logit_bias is 3"),
        ({"logit_bias": {"x": 1.0}}, "token id in logit_bias is 'x'"),
        ({"allowed_token_ids": []}, "allowed_token_ids is empty"),
        ({"stop_token_ids": [-1]}, "stop_token_ids is -1"),
        ({"stop_token_ids": "5"}, "stop_token_ids is '5'"),
        ({"prompt_logprobs": 1000}, "prompt_logprobs is 1000"),
        ({"allowed_token_ids": [49152]}, "49152 is outside the vocabulary"),
        ({"ignore_eos": 1}, "ignore_eos is 1"),
    ],
)
def test_settings_out_of_bounds(exact, settings, message):
    with pytest.raises(UsageError, match=message):
        exact.generate(TEXT, **settings)


def test_streams_side_by_side(exact):
    want = [exact.generate(text, max_tokens=12).text for text in (TEXT, "2 + 2 =")]
    model = replace(exact)
    one, two = model.stream(TEXT, max_tokens=12), model.stream("2 + 2 =", max_tokens=12)
    texts = ["", ""]
    for a, b in zip(one, two, strict=False):
        texts[0] += a.text
        texts[1] += b.text
    texts[0] += "".join(c.text for c in one)
    texts[1] += "".join(c.text for c in two)
    assert texts == want


def test_threads_share_a_model(exact):
    texts = [TEXT, "2 + 2 =", "The sky is", "Once upon"] * 2
    want = [exact.generate(text, max_tokens=8).token_ids for text in texts]
    got = [None] * len(texts)

    def work(place):
        got[place] = exact.generate(texts[place], max_tokens=8).token_ids

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == want


def test_an_abandoned_stream_frees_what_it_held(exact):
    model = replace(exact)
    stream = model.stream(TEXT, max_tokens=500)
    next(stream)
    assert model.engine.has_work()
    stream.close()
    assert not model.engine.has_work()
    assert all(pool.num_free == pool.num_blocks for pool in model.engine.blocks.pools)


def test_logits_that_are_no_numbers_end_the_answer(exact, monkeypatch):
    model = replace(exact)
    original = type(model.decoder).logits
    monkeypatch.setattr(
        type(model.decoder), "logits", lambda self, hidden: original(self, hidden) * torch.nan
    )
    with pytest.raises(ParagoneError, match="not finite"):
        model.generate(TEXT, max_tokens=3)
