"""What cannot be used is refused by name, and the server goes on as if nothing had been (rows 8 to 10)."""

import asyncio
import json
import math
import random
import time
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paragone.serve.call import decode
from paragone.serve.errors import ApiError
from paragone.serve.generate import _in_time
from paragone.serve.schemas import ChatRequest, CompletionRequest

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("field", "bad", "good"),
    [
        ("n", [0, 17, -1, 1.5, "2", True], [1, 16]),
        ("max_tokens", [0, -1, 1.5, "8", (1 << 30) + 1], [1, 1 << 30]),
        ("max_completion_tokens", [0, -1], [1]),
        ("temperature", [-0.1, 2.1, "1"], [0, 2, 1e-9]),
        ("top_p", [0, 1.1, -1], [0.01, 1]),
        ("top_k", [-2, 1.5], [-1, 0, 50]),
        ("min_p", [-0.1, 1.1], [0, 1]),
        ("repetition_penalty", [0, 101], [0.5, 100]),
        ("presence_penalty", [-2.1, 2.1], [-2, 2]),
        ("frequency_penalty", [-2.1, 2.1], [-2, 2]),
        ("seed", [2**63, -(2**63) - 1, 1.5], [0, -1, 2**63 - 1]),
        ("top_logprobs", [-1, 21], []),
        ("stop", ["", ["a"] * 17, ["a" * 257], [1], 5], ["a", ["a"] * 16, ["a" * 256], []]),
        ("stop_token_ids", [[-1], ["a"], [99999]], [[0]]),
        ("min_tokens", [-1], [0, 5]),
        ("logit_bias", [{"a": 1}, {"1\n": 1}, {"1": 101}, {"1": "x"}, {"99999": 1}, {str(i): 0 for i in range(1025)}], [{"1": 100}, {}]),
        ("allowed_token_ids", [[], [99999], [-1]], [[65]]),
        ("priority", [1001, -1, "high"], [0, 1000]),
        ("timeout", [0, -1], [30]),
        ("stream", ["yes", 1], [True, False]),
        ("model", ["", "../x", "a b", "tiny\n", 5], []),
        ("response_format", [{"type": "xml"}, {}, "json"], [{"type": "text"}]),
        ("tool_choice", ["maybe"], ["none", "auto"]),
        ("stream_options", [{"nope": 1}], [{"include_usage": False}]),
        ("best_of", [2], []), ("audio", [{}], []), ("reasoning_effort", ["low"], []), ("nope", [1], []),
        ("chat_template", ["{{ 7*7 }}"], []), ("chat_template_kwargs", [{"chat_template": "x"}], []),
    ],
)  # fmt: skip
def test_every_bound_of_every_field(server, field, bad, good):
    """In both kinds of request, where both have the field."""
    for ask, kind in ((server.chat, ChatRequest), (server.complete, CompletionRequest)):
        if field not in kind.__struct_fields__ and field in ChatRequest.__struct_fields__:
            assert ask(**{field: (good or bad)[0]}).error["code"] == "unsupported_field"
            continue
        # No token at all may be asked for where the echo is wanted.
        may_be_zero = field == "max_tokens" and kind is CompletionRequest
        check_bounds(ask, field, [value for value in bad if not (may_be_zero and value == 0)], good)


def check_bounds(ask, field, bad, good):
    for value in bad:
        found = ask(**{field: value})
        assert found.status == 400, (value, found.data)
        param = found.error["param"]
        assert param is not None, found.data
        assert param.split("[")[0].split(".")[0] == field, found.data
    for value in good:
        found = ask(**({field: value} | ({"max_tokens": 1} if "tokens" not in field else {})))
        assert found.status == 200, (value, found.data)


@pytest.mark.parametrize(
    ("field", "bad", "good"),
    [
        ("logprobs", [-1, 21, 1.5, "2", True], [0, 1, 20]),
        ("echo", ["yes", 1], [True, False]),
        ("suffix", ["x"], []),
        ("best_of", [2, "1"], []),
        ("prompt", ["", [], None, 5, {}, [[]], [""], [-1], [1.5], [True], ["x", 1], [["x"]], [99999]], ["x", ["x"], [65], [[65], [66]]]),
        ("messages", [[]], []),
    ],
)  # fmt: skip
def test_every_bound_of_what_only_completions_have(server, field, bad, good):
    check_bounds(server.complete, field, bad, good)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("Hi", "messages"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "king", "content": "x"}], "messages[0].role"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": "x", "extra": 1}], "messages[0].extra"),
        ([{"role": "user", "content": "x"}] * 1025, "messages"),
        ([{"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{"}}]}], "messages[0].tool_calls"),
    ],
)  # fmt: skip
def test_messages_that_are_none(server, messages, param):
    found = server.post("/v1/chat/completions", {"model": "tiny", "messages": messages})
    assert found.status == 400, found.data
    assert (found.error["param"] or "").startswith(
        param.split("[0].content[0]")[0] if "content[0]" in param else param
    )


@pytest.mark.parametrize(
    "arguments",
    [
        "{",
        '{"a": ' + "[" * 600 + "]" * 600 + "}",
        '{"a": NaN}',
        '{"a": 1, "a": 2}',
        '{"a": "\\ud800"}',
        "[" * 900,
    ],
)
def test_arguments_of_earlier_calls(server, arguments):
    """They are JSON inside of JSON, and as foreign."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    found = server.post("/v1/chat/completions", {"model": "tiny", "messages": messages, "max_tokens": 1})
    assert found.status == 400 or "ud800" in arguments, found.data
    assert found.status < 500


def test_many_prompts_take_many_places(server):
    """Of the 320 that there are."""
    assert server.complete(["x"] * 40, n=8, max_tokens=1).status == 200
    found = server.complete(["x"] * 41, n=8, max_tokens=1)
    assert (found.status, found.error["param"]) == (400, "prompt")
    assert server.idle()["requests_inside"] == 0


BODIES = {
    "not JSON": b"{",
    "nothing": b"",
    "NaN": b'{"temperature": NaN}',
    "infinite": b'{"temperature": 1e999}',
    "a key twice": b'{"model": "tiny", "model": "other"}',
    "half a surrogate": b'{"model": "tiny", "prompt": "\\ud800"}',
    "deep": b"[" * 5000,
    "deep and closed": b"[" * 5000 + b"]" * 5000,
    "many digits": b'{"n": ' + b"9" * 5000 + b"}",
    "not UTF-8": b'{"model": "\xff"}',
    "a list": b"[]",
    "null": b"null",
    "a text": b'"x"',
}


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/apply-template"]
)
@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_no_request(server, path, name):
    found = server.post(path, BODIES[name])
    assert found.status == 400, found.data
    assert found.error["code"] in ("invalid_json", "invalid_value", "missing_field")
    assert not any(word in found.data.decode() for word in ("Traceback", "/work", ".py", "0x"))


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "1e999", '"\\udfff"', "9" * 5000, "[" * 200 + "]" * 200]
)
def test_corner_cases_in_every_field(server, value):
    for kind in (ChatRequest, CompletionRequest):
        for field in kind.__struct_fields__:
            body = f'{{"model": "tiny", "{field}": {value}}}' if field != "model" else f'{{"model": {value}}}'
            with pytest.raises(ApiError) as caught:
                decode(body.encode(), kind)
            assert caught.value.status == 400


def test_nothing_else_is_taken(server):
    body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 1}).encode()
    for headers, status in (
        ({"Content-Type": "text/plain"}, 415), ({"Content-Type": ""}, 415), ({"Content-Encoding": "gzip"}, 415),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
    ):  # fmt: skip
        assert server.post("/v1/completions", body, headers=headers).status == status
    assert server.get("/v1/completions").status == 405
    assert server.get("/v1/completions").headers["allow"] == "POST"
    assert server.get("/nowhere").error["code"] == "not_found"
    assert server.post("/v1/completions", {"model": "nope", "prompt": "x"}).error["code"] == "model_not_found"
    assert server.chat(messages=MESSAGES, top_logprobs=2).error["param"] == "top_logprobs"


@pytest.mark.parametrize("length", [1021, 1022, 1023, 1024, 1025, 1100, 5000])
def test_a_prompt_that_does_not_fit(server, length):
    """The context is 1,024; at least one token has to be left for the answer."""
    found = server.complete([65] * length, max_tokens=4)
    if length < 1024:
        assert found.status == 200
        assert found.json["usage"]["completion_tokens"] <= min(4, 1024 - length)
    else:
        assert (found.status, found.error["code"]) == (400, "context_length_exceeded")
        assert str(length) in found.error["message"]
        assert "1024" in found.error["message"]


def test_five_hundred_prompts_that_do_not_fit(server):
    """By one token or by many; the engine sees none of them."""
    rng, steps = random.Random(1), server.machine()["models"][0]["step_ms"]
    for _ in range(500):
        length = rng.choice((rng.randint(1024, 1100), rng.randint(1024, 20_000)))
        found = server.complete([rng.randrange(256)] * length)
        assert (found.status, found.error["code"]) == (400, "context_length_exceeded")
        assert str(length) in found.error["message"]
    assert server.machine()["models"][0]["step_ms"] == steps


def test_a_text_that_does_not_fit_is_refused_before_it_is_encoded(server):
    for body in (server.complete("x" * 2_000_000), server.chat("x" * 2_000_000), server.chat("x" * 3000)):
        assert (body.status, body.error["code"]) == (400, "context_length_exceeded")


def test_settings_that_leave_no_token(server):
    found = server.complete(allowed_token_ids=[258], min_tokens=3, stop_token_ids=[258])
    assert (found.status, found.error["param"]) == (400, "allowed_token_ids")
    form = {"structured_outputs": {"choice": ["abc"]}, "allowed_token_ids": [65]}
    assert server.chat(**form).error["param"] == "structured_outputs.choice"


def test_ids_outside_the_vocabulary(server):
    assert server.complete([5, 100_000]).error["param"] == "prompt"
    assert server.complete([-1]).status == 400
    assert server.complete("").error["param"] == "prompt"
    assert server.complete([]).error["param"] == "prompt"
    assert server.complete(["a"] * 1025).error["param"] == "prompt"


ATOMS = [
    None, True, False, 0, 1, -1, 3, 2**31, -(2**63), 10**30, 0.5, -0.0, 1e-9, 1e300, "", "x", "auto", "text", "\x00", "\U0001f600",
]  # fmt: skip


def any_value(rng, depth=0):
    """Most often something simple; seldom lists and objects in each other."""
    kind = rng.random()
    if depth > 3 or kind < 0.7:
        return rng.choice(ATOMS)
    inner = [any_value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    if kind < 0.85:
        return inner
    return {rng.choice(["type", "content", "role", "a", "", "1", "name"]): value for value in inner}


def test_any_body_is_a_request_or_a_400():
    """Five thousand of each kind, without a server between."""
    rng, refused = random.Random(9), 0
    for kind, least in ((ChatRequest, {"messages": MESSAGES}), (CompletionRequest, {"prompt": "x"})):
        names = [*kind.__struct_fields__, "x"]
        for _ in range(5000):
            fields = {rng.choice(names): any_value(rng) for _ in range(rng.randint(0, 4))}
            try:
                decode(json.dumps({"model": "tiny"} | least | fields).encode(), kind)
            except ApiError as err:
                refused += 1
                assert err.status == 400
                assert err.body["error"]["message"]  # type: ignore[index]
    assert 1000 < refused < 9000


TRAVERSAL = [
    "..",
    "/",
    "\\\\",
    "%2e%2e",
    "%2f",
    "\x00",
    "\u2024\u2024",
    "\uff0f",
    "etc",
    "passwd",
    "C:",
    "\\\\?\\",
    "~",
    "tiny",
]


@given(st.lists(st.sampled_from(TRAVERSAL), min_size=1, max_size=6).map("".join))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_name_is_a_path(server, name):
    """Names are those of the models that are served, and nothing else (row 16)."""
    if name == "tiny":
        return
    for body in (
        server.complete(model=name),
        server.chat(model=name),
        server.post("/tokenize", {"model": name, "prompt": "x"}),
    ):
        assert body.status in (400, 404), body.data
        assert body.error["code"] in ("invalid_value", "model_not_found")


def test_afterwards_it_is_as_before(server):
    before = server.complete(temperature=0).json["choices"]
    pid = server.engine_pid()
    for _ in range(30):
        server.chat(temperature=9)
        server.post("/v1/completions", b"{")
    assert server.idle()
    assert server.complete(temperature=0).json["choices"] == before
    assert server.engine_pid() == pid
    lag = server.get("/metrics").data.decode()
    assert "paragone_event_loop_lag_seconds_bucket" in lag
    assert math.isfinite(float(lag.split("paragone_event_loop_lag_seconds_sum ")[1].split()[0]))


def test_what_is_refused_is_not_sent_back_whole(server):
    """A field's name as long as a body may be."""
    name = b"x" * (9 << 20)
    found = server.post("/v1/completions", b'{"model": "tiny", "prompt": "x", "%s": 1}' % name)
    assert (found.status, found.error["code"]) == (400, "unsupported_field")
    assert len(found.data) < 2000


@pytest.mark.parametrize("item", [b"0", b"{}", b'""', b"[]"])
def test_a_body_of_very_many_small_things(server, item):
    """Refused before anything is made of them: each takes many times its bytes."""
    body = b'{"model": "tiny", "prompt": [' + b",".join([item] * 1_100_000) + b"]}"
    found = server.post("/v1/completions", body)
    assert (found.status, found.error["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("large", [{"a" * 140_000: 1}, {"enum": ["a" * 1000] * 140}, {"enum": [1] * 140_000}])
def test_a_grammar_that_is_too_large(server, large):
    found = server.chat(response_format={"type": "json_schema", "json_schema": {"schema": large}})
    assert (found.status, found.error["code"]) == (400, "grammar_too_complex")


def test_a_client_that_leaves_while_its_request_is_prepared():
    """It waits for a model, a template or a grammar: that work is given up."""

    async def main():
        given_up = asyncio.Event()

        async def prepares():
            try:
                await asyncio.sleep(60)
            finally:
                given_up.set()

        async def leaves():
            await asyncio.sleep(0.01)

        state, request = SimpleNamespace(request_seconds=60.0), SimpleNamespace(timeout=None)
        call = SimpleNamespace(begin=time.perf_counter(), gone=leaves)
        with pytest.raises(ApiError) as caught:
            await _in_time(state, call, request, prepares())
        await asyncio.wait_for(given_up.wait(), 5)
        return caught.value.status

    assert asyncio.run(main()) == 499
