"""Streams of text against oracles of a few lines."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paragone.errors import UsageError
from paragone.text.stream import TextStream, check_stop_strings


def run(data: bytes, cuts, stops=()):
    stream = TextStream(stops)
    pieces, at = [], 0
    for cut in [*sorted(cuts), len(data)]:
        pieces.append(stream.push(data[at:cut]))
        at = cut
        if stream.stopped:
            return pieces, True
    pieces.append(stream.finish())
    return pieces, stream.stopped


def oracle(text: str, stops) -> tuple[str, bool]:
    """The text before the stop string that completes first; at a tie, the one that begins first."""
    for end in range(1, len(text) + 1):
        begins = [end - len(s) for s in stops if text[:end].endswith(s)]
        if begins:
            return text[: min(begins)], True
    return text, False


def test_every_unicode_scalar_split_at_every_byte():
    for code in [*range(0xD800), *range(0xE000, 0x110000)]:
        data = chr(code).encode()
        stream = TextStream()
        out = [stream.push(data[i : i + 1]) for i in range(len(data))]
        assert out[:-1] == [""] * (len(data) - 1)
        assert out[-1] == chr(code)


@settings(max_examples=1500, deadline=None)
@given(st.text(), st.lists(st.integers(0, 80), max_size=8))
def test_pieces_join_to_the_text(text, cuts):
    data = text.encode()
    pieces, _ = run(data, [min(c, len(data)) for c in cuts])
    assert "".join(pieces) == text


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_any_bytes_decode_as_a_whole(data, cuts):
    pieces, _ = run(data, [min(c, len(data)) for c in cuts])
    assert "".join(pieces) == data.decode("utf-8", "replace")


def test_stop_strings_equal_the_oracle():
    rng = random.Random(0)
    stopped = 0
    for _ in range(50_000):
        alphabet = rng.choice(["ab", "abé", "a\n#"])
        text = "".join(rng.choices(alphabet, k=rng.randrange(0, 14)))
        stops = ["".join(rng.choices(alphabet, k=rng.randrange(1, 5))) for _ in range(rng.randrange(1, 4))]
        data = text.encode()
        cuts = [rng.randrange(0, len(data) + 1) for _ in range(rng.randrange(0, 6))]
        pieces, was_stopped = run(data, cuts, stops)
        assert ("".join(pieces), was_stopped) == oracle(text, stops), (text, stops, cuts)
        stopped += was_stopped
    assert stopped > 10_000


def test_nothing_of_a_stop_string_is_emitted_early():
    stream = TextStream(["###"])
    assert stream.push(b"ab#") == "ab"
    assert stream.push(b"#") == ""
    assert stream.push(b"c") == "##c"
    assert stream.push(b"##") == ""
    assert stream.push(b"#tail") == ""
    assert stream.stopped
    assert stream.finish() == ""


@pytest.mark.parametrize("stops", [[""], ["x" * 257], ["a"] * 17])
def test_unusable_stop_strings(stops):
    with pytest.raises(UsageError, match="stop"):
        check_stop_strings(stops)


def test_first_space_is_dropped_once():
    stream = TextStream(drop_first_space=True)
    assert stream.push(b" a") + stream.push(b" b") == "a b"
