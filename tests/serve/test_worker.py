"""When the engine's process says something: what is held back, and that it lives."""

import socket
import time
from types import SimpleNamespace

import pytest

from paragone import limits
from paragone.engine.request import Chunk
from paragone.serve import worker
from paragone.serve.messages import Frames, FromEngine, State, Step


class Scripted:
    """An engine whose steps are given: what is left of prompts, and the text of the only answer's next token."""

    def __init__(self, *steps):
        self.steps = list(steps)
        pool = SimpleNamespace(num_blocks=8, num_free=8)
        self.blocks = SimpleNamespace(pools=[pool], queries=0, hits=0)
        self.scheduler = SimpleNamespace(running=[1], waiting=[], num_preemptions=0, prompt_tokens_left=0)
        self.before_step = lambda: None

    def step(self):
        self.before_step()
        left, text = self.steps.pop(0)
        self.scheduler.prompt_tokens_left = left
        return [Chunk(0, text, (7,))] if text else []


@pytest.fixture
def ends():
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def said(own):
    """The steps that a worker has to write."""
    messages = [own._said.get() for _ in range(own._said.qsize())]
    return [message for message in messages if isinstance(message, Step)]


def begun(ends, *steps):
    """A worker that has just sent an answer's first token."""
    own, engine = worker.Worker(ends[0]), Scripted((0, "a"), *steps)
    model = worker.Running(engine, None, requests={0: 1}, left={0: 1})
    own._models["m"] = model
    own._step("m", model)
    (first,) = said(own)
    assert [delta.text for delta in first.deltas] == ["a"]
    return own, model


@pytest.mark.parametrize(
    ("left", "waits"), [(limits.GATHER_PROMPT_TOKENS + 1, False), (limits.GATHER_PROMPT_TOKENS, True)]
)
def test_held_tokens_leave_before_a_long_prompt_is_read(ends, monkeypatch, left, waits):
    monkeypatch.setattr(limits, "GATHER_SECONDS", 3600.0)
    monkeypatch.setattr(limits, "GATHER_SECONDS_AT_MOST", 3600.0)
    own, model = begun(ends, (left, "b"), (0, "c"))
    own._step("m", model)
    assert not said(own), "held back"
    seen = []
    model.engine.before_step = lambda: seen.extend(said(own))
    own._step("m", model)
    assert [delta.text for step in seen for delta in step.deltas] == ([] if waits else ["b"])


def test_an_engine_with_nothing_to_send_says_that_it_lives(ends):
    own, model = begun(ends, (500, ""), (500, ""))
    own._step("m", model)
    assert not said(own), "it has just said something"
    own._told = time.monotonic() - worker.ALIVE_EVERY_S
    own._step("m", model)
    (alive,) = said(own)
    assert (alive.deltas, alive.state.running) == ((), 1)


def test_messages_are_written_in_order_and_one_that_cannot_be_ends_the_process(ends):
    """Where nobody is at the other end, `run` is what hears of it."""
    own = worker.Worker(ends[0])
    steps = [Step("m", (), State(running, *[0] * 7, 0.0, 0)) for running in range(100)]
    for message in (*steps, object()):
        own._send(message)
    own._write()
    found = list(Frames(FromEngine).feed(ends[1].recv(1 << 20)))
    assert found == steps
    with pytest.raises(TypeError):
        own._handle(own._line.get_nowait())
    ends[1].close()
    own._send(steps[0])
    own._write()
    assert own._line.empty()
