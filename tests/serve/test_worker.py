"""When the engine's process says something: what is held back, and that it lives."""

import socket
import time
from types import SimpleNamespace

import pytest

from paragone import limits
from paragone.engine.request import Chunk
from paragone.serve import worker
from paragone.serve.messages import Frames, FromEngine, Step


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


def said(channel):
    """The steps that lie in the channel."""
    channel.setblocking(False)
    try:
        data = channel.recv(1 << 20)
    except BlockingIOError:
        return []
    return [message for message in Frames(FromEngine).feed(data) if isinstance(message, Step)]


def begun(ends, *steps):
    """A worker that has just sent an answer's first token."""
    own, engine = worker.Worker(ends[0]), Scripted((0, "a"), *steps)
    model = worker.Running(engine, None, requests={0: 1}, left={0: 1})
    own._models["m"] = model
    own._step("m", model)
    (first,) = said(ends[1])
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
    assert not said(ends[1]), "held back"
    seen = []
    model.engine.before_step = lambda: seen.extend(said(ends[1]))
    own._step("m", model)
    assert [delta.text for step in seen for delta in step.deltas] == ([] if waits else ["b"])


def test_an_engine_with_nothing_to_send_says_that_it_lives(ends):
    own, model = begun(ends, (500, ""), (500, ""))
    own._step("m", model)
    assert not said(ends[1]), "it has just said something"
    own._told = time.monotonic() - worker.ALIVE_EVERY_S
    own._step("m", model)
    (alive,) = said(ends[1])
    assert (alive.deltas, alive.state.running) == ((), 1)
