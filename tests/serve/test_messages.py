"""What the two processes say to each other."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paragone.engine.params import SamplingParams
from paragone.errors import MalformedData, UsageError
from paragone.serve.messages import (
    Abort,
    Delta,
    Frames,
    FromEngine,
    Load,
    State,
    Step,
    Submit,
    ToEngine,
    frame,
    params_from_wire,
    params_to_wire,
)

SUBMIT = Submit(1, "m", [1, 2, 3], {"max_tokens": 4}, True, ("x",), False, None, 0, "t")
STEP = Step(
    "m", (Delta(1, 0, "é", (5,), ((5, -0.5, ((5, -0.5),)),), "stop"),), State(1, 2, 3, 4, 0, 0, 0, 9, 0.1, 5)
)


@given(
    st.lists(st.sampled_from([SUBMIT, Abort(3), Load("m", "p", "n", None, 7, False, {"a": True})])), st.data()
)
def test_messages_come_whole_however_they_are_cut(messages, data):
    stream = b"".join(map(frame, messages))
    frames, found, at = Frames(ToEngine), [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, 40))
        found += frames.feed(stream[at : at + size])
        at += size
    assert found == messages


def test_the_other_direction():
    assert list(Frames(FromEngine).feed(frame(STEP))) == [STEP]


@given(st.binary(max_size=200))
@settings(max_examples=5000)
def test_what_is_no_message_is_refused_and_nothing_else(data):
    for kind in (ToEngine, FromEngine):
        try:
            list(Frames(kind).feed(len(data).to_bytes(4, "little") + data))
        except MalformedData:
            continue


@given(st.integers(0, 400), st.integers(0, 255))
@settings(max_examples=2000)
def test_a_byte_that_is_wrong(place, byte):
    raw = bytearray(frame(STEP))
    raw[place % len(raw)] = byte
    try:
        for message in Frames(FromEngine).feed(bytes(raw)):
            assert isinstance(message, FromEngine)
    except MalformedData:
        pass


def test_a_message_of_the_other_direction_is_none():
    with pytest.raises(MalformedData):
        list(Frames(FromEngine).feed(frame(SUBMIT)))


def test_a_message_that_is_too_long_is_refused_before_it_comes():
    with pytest.raises(MalformedData, match="a message of 4294967295 bytes"):
        list(Frames(ToEngine).feed(b"\xff\xff\xff\xff"))


def test_settings_survive_the_way():
    params = SamplingParams(
        max_tokens=9, temperature=0.5, stop=("a", "é"), logit_bias={3: -1.5, 9: 2.0}, n=3,
        allowed_token_ids=(1, 2), seed=5, logprobs=2,
    )  # fmt: skip
    sent = Submit(1, "m", [1], params_to_wire(params), False, (), False, None, 0, "")
    (back,) = Frames(ToEngine).feed(frame(sent))
    assert params_from_wire(back.params) == params
    with pytest.raises(UsageError, match="unknown setting nope"):
        params_from_wire({"nope": 1})
