"""Text that is cut over tokens (row 27): every character survives, stop strings are found, counts are exact."""

import random

import pytest

from paragone.text.stream import TextStream


def test_every_character_that_there_is():
    """All 1,112,064 Unicode scalars, each byte on its own."""
    stream, count = TextStream(), 0
    for code in (*range(0xD800), *range(0xE000, 0x110000)):
        data = chr(code).encode()
        for at in range(len(data) - 1):
            assert stream.push(data[at : at + 1]) == ""
        assert stream.push(data[-1:]) == chr(code)
        count += 1
    assert count == 1_112_064


def stopped(text, stops):
    """The text up to the stop string that is complete first (of two, the one that begins first)."""
    best = None
    for stop in stops:
        at = text.find(stop)
        if at >= 0 and (best is None or (at + len(stop), at) < best):
            best = (at + len(stop), at)
    return (text, False) if best is None else (text[: best[1]], True)


def test_stop_strings_against_ten_lines():
    rng = random.Random(27)
    for _ in range(100_000):
        text = "".join(rng.choices("abé\U0001f600", k=rng.randint(0, 30)))
        stops = ["".join(rng.choices("abé", k=rng.randint(1, 4))) for _ in range(rng.randint(0, 4))]
        stream, data, out, at = TextStream(stops), text.encode(), "", 0
        while at < len(data) and not stream.stopped:
            size = rng.randint(1, 5)
            out += stream.push(data[at : at + size])
            assert "�" not in out
            at += size
        out += stream.finish()
        assert (out, stream.stopped) == stopped(text, stops), (text, stops)


@pytest.mark.parametrize("kind", ["chat", "complete"])
def test_characters_survive_the_server(server, kind):
    """A grammar makes the model say a text; its tokens are single bytes."""
    random.seed(2)
    codes = [
        c
        for c in range(0x20, 0x110000)
        if not 0xD800 <= c < 0xE000 and not 0xFDD0 <= c < 0xFDF0 and c & 0xFFFE != 0xFFFE
    ]
    for _ in range(12):
        text = "".join(chr(random.choice(codes)) for _ in range(20))
        asked = {"structured_outputs": {"choice": [text]}, "max_tokens": 200, "temperature": 1.0}
        ask = getattr(server, kind)
        whole = ask(**asked).json
        choice = whole["choices"][0]
        assert (choice["message"]["content"] if kind == "chat" else choice["text"]) == text
        events = ask(**asked, stream=True, stream_options={"include_usage": True}).events
        pieces = [
            c["delta"].get("content", "") if kind == "chat" else c["text"]
            for e in events
            for c in e["choices"]
        ]
        assert "".join(pieces) == text
        assert not any("�" in piece for piece in pieces)
        assert events[-1]["usage"] == whole["usage"] | {
            "prompt_tokens_details": events[-1]["usage"]["prompt_tokens_details"]
        }
        assert whole["usage"]["completion_tokens"] in (len(text.encode()), len(text.encode()) + 1)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_over_tokens(server, stream):
    text = "one two three four"
    asked = {
        "structured_outputs": {"choice": [text]},
        "max_tokens": 200,
        "stop": ["three fo", "wo t"],
        "stream": stream,
    }
    found = server.complete(**asked)
    got = "".join(c["text"] for e in (found.events if stream else [found.json]) for c in e["choices"])
    assert got == "one t"
    assert (found.events[-1] if stream else found.json)["choices"][0]["finish_reason"] == "stop"
