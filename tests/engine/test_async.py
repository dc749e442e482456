"""Coroutines on one engine: each gets its own answer, leaving is aborting, closing ends what runs."""

import asyncio
import threading

import pytest

import paragone
from paragone import AsyncEngine, Engine, Request, SamplingParams
from paragone.errors import ContextLengthExceeded, ParagoneError

TEXTS = ["The sky is", "2 + 2 =", "Once upon a time", "Water boils at"]


@pytest.fixture
def engine(smollm2):
    return Engine(smollm2.decoder, smollm2.tokenizer)


def ask(model, text, **settings):
    return Request(model.encode(text), SamplingParams(ignore_eos=True, **settings))


async def collect(front, request, **where):
    return [chunk async for chunk in front.generate(request, **where)]


def test_every_task_gets_its_own_answer(smollm2, engine):
    async def work():
        async with AsyncEngine(engine) as front:
            asked = [ask(smollm2, text, max_tokens=12, logprobs=0) for text in TEXTS * 2]
            return await asyncio.gather(*(collect(front, request) for request in asked))

    answers = asyncio.run(work())
    for chunks, text in zip(answers, TEXTS * 2, strict=True):
        completion = chunks[-1].completion
        assert "".join(c.text for c in chunks) == completion.text
        assert completion.prompt_tokens == len(smollm2.encode(text))
        assert len(completion.token_ids) == 12
        assert len({c.index for c in chunks}) == 1
    assert [a[-1].completion.text for a in answers[:4]] == [a[-1].completion.text for a in answers[4:]]
    engine.check()
    assert not engine.has_work()


def test_leaving_is_aborting(smollm2, engine):
    async def work():
        async with AsyncEngine(engine) as front:
            stream = front.generate(ask(smollm2, TEXTS[0], max_tokens=500))
            async for _ in stream:
                break
            await stream.aclose()
            task = asyncio.create_task(collect(front, ask(smollm2, TEXTS[1], max_tokens=500)))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            after = await collect(front, ask(smollm2, TEXTS[2], max_tokens=3))
            return engine.has_work(), after

    has_work, after = asyncio.run(work())
    assert not has_work
    assert after[-1].finish_reason == "length"
    assert all(pool.num_free == pool.num_blocks for pool in engine.blocks.pools)


def test_refusals_reach_the_one_who_asked(smollm2, engine):
    async def work():
        async with AsyncEngine(engine) as front:
            good = asyncio.create_task(collect(front, ask(smollm2, TEXTS[0], max_tokens=8)))
            with pytest.raises(ContextLengthExceeded):
                await collect(front, Request([5] * 9000, SamplingParams()))
            return await good

    assert asyncio.run(work())[-1].finish_reason == "length"


def test_closing_ends_what_runs(smollm2, engine):
    async def work():
        front = AsyncEngine(engine)
        task = asyncio.create_task(collect(front, ask(smollm2, TEXTS[0], max_tokens=4000)))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(front.close)
        chunks = await asyncio.wait_for(task, 10)
        with pytest.raises(ParagoneError, match="closed"):
            await collect(front, ask(smollm2, TEXTS[1]))
        return chunks

    chunks = asyncio.run(work())
    assert chunks[-1].finish_reason == "cancelled"
    assert chunks[-1].completion.text.startswith("".join(c.text for c in chunks[:-1]))
    assert not any(thread.name == "engine" for thread in threading.enumerate())


def test_who_waits_to_be_put_in_line_hears_of_the_end(smollm2, engine):
    async def main():
        front = AsyncEngine(engine)
        gate = threading.Event()
        front._tell(gate.wait)  # holds the thread up
        await asyncio.sleep(0.1)
        task = asyncio.create_task(
            collect(front, Request(smollm2.encode("One"), SamplingParams(max_tokens=2)))
        )
        await asyncio.sleep(0.1)
        front._closing = True
        gate.set()
        with pytest.raises(ParagoneError, match="the engine is closed"):
            await task
        await asyncio.to_thread(front.close)

    asyncio.run(main())


def test_the_package_names_what_it_exports():
    for name in paragone.__all__:
        assert getattr(paragone, name) is not None
    with pytest.raises(AttributeError, match="no_such"):
        _ = paragone.no_such
