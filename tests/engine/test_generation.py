"""Several users of one model: nobody's request is lost, whoever comes first, leaves early or does harm."""

import threading
import time
from dataclasses import replace

import pytest
import torch

from paragone.engine import resources
from paragone.engine.config import EngineConfig
from paragone.engine.engine import Engine
from paragone.engine.load import load_model
from paragone.engine.params import SamplingParams
from paragone.engine.request import Request
from paragone.errors import ContextLengthExceeded
from tests.engine.test_engine import one_decoder  # noqa: F401 -- a fixture
from tests.real import SMOLLM2, path_of


@pytest.fixture
def model(smollm2):
    return replace(smollm2)  # with an engine of its own


def test_the_first_two_threads_share_one_engine(model, monkeypatch):
    made = []

    def slow(*arguments):
        time.sleep(0.2)
        made.append(Engine(*arguments))
        return made[-1]

    monkeypatch.setattr("paragone.engine.model.Engine", slow)
    texts, threads = [None] * 4, []
    for n in range(4):

        def work(n=n):
            texts[n] = model.generate("The sky is", max_tokens=4).text

        threads.append(threading.Thread(target=work, daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join(60)
    assert len(made) == 1
    assert len(set(texts)) == 1
    assert texts[0] is not None


def test_nothing_is_kept_of_what_has_ended(model):
    model.generate(["One", "Two"], max_tokens=3)
    list(model.stream("Three", max_tokens=3))
    next(model.stream("Four", max_tokens=9))
    assert not model._front._boxes


def test_an_abort_in_the_middle_of_a_step_waits_for_its_end(model):
    """As when the garbage collector ends a stream that nobody holds any more."""
    left = model.stream("A text that goes on", max_tokens=50, ignore_eos=True)
    next(left)
    calls = 0

    def leave(_stats):
        nonlocal calls
        calls += 1
        if calls == 3:
            left.close()

    model.engine.on_step = leave
    answer = model.generate("The sky is", max_tokens=12, ignore_eos=True)
    assert len(answer.token_ids) == 12
    assert not model.engine.has_work()
    assert not model._front._boxes


def test_who_watches_does_no_harm(model):
    def broken(_stats):
        raise ValueError("made to fail")

    model.engine.on_step = broken
    with pytest.warns(UserWarning, match="on_step failed and is not called any more: made to fail"):
        assert len(model.generate("The sky is", max_tokens=4, ignore_eos=True).token_ids) == 4


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_pytorchs_threads_keep_out_of_the_kernels_way(precision):
    """During a step of the kernels, and only then."""
    model = load_model(path_of(SMOLLM2), SMOLLM2, precision)
    before, during = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        engine = Engine(model.decoder, model.tokenizer)
        engine.on_step = lambda _: during.append(torch.get_num_threads())
        engine.run([Request(model.encode("The sky is"), SamplingParams(max_tokens=2))])
        assert during == [1 if precision == "bf16" else 3] * 2
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_callback_may_abort_its_own_request(model):
    engine = Engine(model.decoder, model.tokenizer)

    def allowed(ids):
        if len(ids) == 2:
            engine.abort(first)
        return

    params = SamplingParams(max_tokens=6, ignore_eos=True)
    first = engine.add(Request(model.encode("One"), params, allowed=lambda: allowed))
    second = engine.add(Request(model.encode("Two"), params))
    chunks = []
    while engine.has_work():
        chunks += engine.step()
        engine.check()
    assert [chunk.completion.finish_reason for chunk in chunks if chunk.completion] == ["length"]
    assert chunks[-1].index == second


def test_cancelling_keeps_what_has_come(model):
    """Chunks that another's steps have put into the box are handed out."""
    slow, fast = (model.start([text], max_tokens=n, ignore_eos=True) for text, n in (("One", 4), ("Two", 30)))
    chunks, others = iter(slow), iter(fast)
    text = next(chunks).text
    for _ in range(8):
        next(others)
    slow.cancel()
    rest = list(chunks)
    assert text + "".join(chunk.text for chunk in rest) == slow.completions[0].text
    assert slow.completions[0].finish_reason == "length"
    others.close()


def test_a_lost_engine_s_numbers_are_not_used_again(model, monkeypatch):
    old = iter(model.start(["One"], max_tokens=30, ignore_eos=True))
    next(old)
    with monkeypatch.context() as patch:

        def stop(_self):
            raise KeyboardInterrupt

        patch.setattr(Engine, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            next(iter(model.start(["Two"], max_tokens=3)))
    new = model.start(["Three"], max_tokens=3, ignore_eos=True)
    chunks = iter(new)
    next(chunks)
    assert list(old) == []  # lost, and it takes nobody else's
    list(chunks)
    assert len(new.completions[0].token_ids) == 3


def test_run_leaves_nothing_behind(model):
    engine = Engine(model.decoder, model.tokenizer)
    good = Request(model.encode("One"), SamplingParams(max_tokens=3))
    with pytest.raises(ContextLengthExceeded):
        engine.run([good, replace(good, prompt_ids=[1] * 9000)])
    assert not engine.has_work()
    params = SamplingParams(max_tokens=20, n=3, temperature=1.5, seed=1)
    engine.run([replace(good, params=params)])
    assert not engine.has_work()
    engine.check()


def test_memory_in_a_container(tmp_path, monkeypatch):
    """Pages of files can be had back: a checkpoint that was just read is no reason to refuse it."""
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
    for name, text in (("memory.max", "8000000000"), ("memory.current", "7900000000")):
        (tmp_path / name).write_text(text + "\n")
    assert resources.available_memory_bytes() == 100_000_000
    (tmp_path / "memory.stat").write_text(
        "anon 900000000\ninactive_file 5000000000\nactive_file 1000000000\n"
    )
    assert resources.available_memory_bytes() == min(6_100_000_000, resources.available_memory_bytes())
    assert resources.available_memory_bytes() > 1_000_000_000
    (tmp_path / "memory.current").write_text("15000000000")
    assert resources.available_memory_bytes() == 0


def test_waiting_is_not_counted_as_asking(one_decoder, smollm2_tokenizer):  # noqa: F811
    config = EngineConfig(kv_cache_bytes=20_000_000, max_num_seqs=2, block_size=4)
    engine = Engine(one_decoder, smollm2_tokenizer, config)
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    for n in range(4):
        engine.add(Request([n] * 20, params), priority=n % 2)
    while engine.has_work():
        engine.step()
    assert engine.blocks.queries == 4 * 20
    assert engine.blocks.hits == 0
