"""Answers of a given form, and grammars that are attacks (row 15)."""

import json
import os
import random
import re
import time

import jsonschema
import pytest

from paragone import limits
from paragone.serve.errors import ApiError
from paragone.serve.grammar_check import GrammarCheck, Wanted

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def schema_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}


def content(answer):
    assert answer.status == 200, answer.data
    return [c["message"]["content"] for c in answer.json["choices"] if c["finish_reason"] == "stop"]


def test_a_schema_is_kept(server):
    found = content(server.chat(n=8, temperature=1.5, max_tokens=100, response_format=schema_format(PERSON)))
    assert found
    for text in found:
        jsonschema.validate(json.loads(text), PERSON)


def test_streamed_equals_whole(server):
    asked = {"seed": 5, "temperature": 1.0, "max_tokens": 100, "response_format": schema_format(PERSON)}
    whole = server.chat(**asked).json["choices"][0]["message"]["content"]
    parts = [
        c["delta"].get("content", "") for e in server.chat(**asked, stream=True).events for c in e["choices"]
    ]
    assert "".join(parts) == whole


@pytest.mark.parametrize(
    ("given", "check"),
    [
        ({"regex": r"[0-9]{3}-[a-f]{2}"}, lambda text: re.fullmatch(r"[0-9]{3}-[a-f]{2}", text)),
        ({"choice": ["yes", "no", 'a "quoted" one', "日本"]}, lambda text: text in ("yes", "no", 'a "quoted" one', "日本")),
        ({"json": PERSON}, lambda text: jsonschema.validate(json.loads(text), PERSON) is None),
        ({"grammar": 'root ::= "x" | "y" root'}, lambda text: re.fullmatch("y*x", text)),
        ({"grammar": 'start: "a" "b"* "c"'}, lambda text: re.fullmatch("ab*c", text)),
    ],
)  # fmt: skip
def test_every_form(server, given, check):
    found = content(server.chat(structured_outputs=given, temperature=1.5, n=4, max_tokens=200))
    assert found
    assert all(check(text) for text in found), found


def test_a_json_object(server):
    answers = server.chat(response_format={"type": "json_object"}, temperature=1, n=16, max_tokens=60)
    for text in content(answers):
        assert isinstance(json.loads(text), dict)
    begun = [c["message"]["content"] for c in answers.json["choices"]]
    assert all(text.startswith("{") for text in begun)


def test_beside_answers_of_any_form(server):
    """In one batch, each keeps its own."""
    from concurrent.futures import ThreadPoolExecutor

    def ask(number):
        form = {"structured_outputs": {"choice": [f"only {number}"]}} if number % 2 else {}
        return server.chat(f"Ask {number}", **form, max_tokens=40).json["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, range(32)))
    assert [text for number, text in enumerate(found) if number % 2] == [f"only {n}" for n in range(1, 32, 2)]


def random_schema(depth=0):
    kind = random.choice(
        ["string", "integer", "boolean", "enum", "array", "object", "null", "number"][: 8 if depth < 2 else 4]
    )
    if kind == "enum":
        return {"enum": random.sample(["a", "b b", 3, None, True, "é"], 3)}
    if kind == "array":
        return {"type": "array", "items": random_schema(depth + 1), "maxItems": random.randint(0, 3)}
    if kind == "object":
        names = random.sample(["a", "b", "name", "é"], random.randint(0, 3))
        return {
            "type": "object", "properties": {n: random_schema(depth + 1) for n in names},
            "required": names[: random.randint(0, len(names))], "additionalProperties": False,
        }  # fmt: skip
    bounds = {"string": {"maxLength": 6}, "integer": {"minimum": -5, "maximum": 50}}
    return {"type": kind} | bounds.get(kind, {})


def test_a_thousand_answers_keep_their_schemas(server):
    random.seed(11)
    kept = 0
    for turn in range(70):
        schema = {
            "type": "object",
            "properties": {"x": random_schema()},
            "required": ["x"],
            "additionalProperties": False,
        }
        answer = server.chat(
            n=16, temperature=1.3, seed=turn, max_tokens=160, response_format=schema_format(schema)
        )
        for text in content(answer):
            jsonschema.validate(json.loads(text), schema)
            kept += 1
    assert kept >= 1000


HOSTILE = {
    "regex": [
        "(", "[a", "a{2,1}", "(?<=a)b", "(a)\\1", "*", "((a{1000}){1000}){1000}", "(" * 5000, "a{100000000}",
        "(?P<x>", "\\", "[z-a]", "(?i", "x" * (limits.GRAMMAR_BYTES + 1),
    ],
    "grammar": [
        "start: nope", "start", "", "root ::= ", 'root ::= "a" nope', "start: /(/", "start: start", "%llguidance {", 'start: "a" ~ 3',
        "start: %json {\"type\": \"nope\"}", "start: " + "(" * 3000, "::=", "start: <[999999999]>",
    ],
    "json": [
        {"type": "nope"}, {"$ref": "#/nope"}, {"$ref": "http://example.com/x"}, {"type": 5}, {"properties": []},
        {"type": "string", "pattern": "("}, {"type": "integer", "minimum": 5, "maximum": 1}, {"enum": []}, {"anyOf": []},
        {"type": "string", "minLength": 5, "maxLength": 1}, {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"if": {}, "then": {}}, {"not": {}}, {"type": "string", "pattern": "((a{1000}){1000}){1000}"},
        {"type": "array", "uniqueItems": True}, {"type": "object", "x-guidance": {"nope": 1}},
    ],
}  # fmt: skip


@pytest.mark.parametrize("field", HOSTILE)
def test_grammars_that_cannot_be_used(server, field):
    """Refused with the field's name, in time, and the server lives on."""
    accepted = []
    for source in HOSTILE[field]:
        begin = time.monotonic()
        found = server.chat(structured_outputs={field: source}, max_tokens=4)
        assert time.monotonic() - begin < limits.GRAMMAR_SECONDS + 6, source
        if found.status == 200:  # unusual, and sound all the same
            accepted.append(source)
            continue
        assert found.status == 400, (source, found.data)
        assert found.error["code"] in ("invalid_grammar", "grammar_too_complex", "invalid_value"), found.data
        assert found.error["param"].startswith("structured_outputs"), found.data
        assert not re.search(r"/\w+/\w+/", found.error["message"])
    assert len(accepted) <= 3, accepted
    assert server.chat().status == 200


@pytest.mark.parametrize("regex", ["(a+)+b", "(a|b)*a(a|b){40}", "(a|aa)+$", "(.*)*x", "((a|b|c)*d){1,30}"])
def test_expressions_that_explode_elsewhere(server, regex):
    """In engines that go back, or in those that make automata."""
    begin = time.monotonic()
    found = server.chat(structured_outputs={"regex": regex}, max_tokens=60, temperature=1)
    assert found.status in (200, 400), found.data
    assert time.monotonic() - begin < 15


def test_what_takes_too_long_is_killed_and_others_go_on(server):
    """A process, not a thread that goes on: its number changes, and nothing is left of it."""
    check = GrammarCheck(seconds=0.2)
    try:
        first = check.process.start().pid
        bomb = Wanted("regex", "((a{1000}){1000}){1000}", "x")
        for _ in range(2):
            with pytest.raises(ApiError, match="too complex"):
                check.grammar(bomb)
        assert check.process.pid is None  # and the second time it was remembered
        assert check.grammar(Wanted("regex", "a", "x"))
        assert check.process.pid not in (None, first)
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)
    finally:
        check.process.stop()


def test_no_stream_stutters_meanwhile(server):
    """While a grammar is being killed, tokens of others come."""
    import threading

    gaps: list[float] = []

    def read():
        from tests.serve.test_wire import streamed

        with streamed(server, max_tokens=500) as connection:
            last = time.monotonic()
            while piece := connection.recv(1 << 16):
                now = time.monotonic()
                gaps.append(now - last)
                last = now
                if b"[DONE]" in piece:
                    return

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    server.chat(structured_outputs={"regex": "(((a{999}){999}){999}){2}"})
    for thread in threads:
        thread.join()
    assert sorted(gaps)[-3] < 0.5, sorted(gaps)[-5:]  # held up it would be 2 s


def test_ten_thousand_grammars_leave_nothing_behind():
    check = GrammarCheck()
    check.process.ask = lambda line: json.dumps({"grammar": "x" * 3000}).encode() + b"\n"  # type: ignore[method-assign]
    for number in range(10_000):
        check.grammar(Wanted("regex", f"a{number}", "x"))
    count, size = check.known
    assert count <= limits.GRAMMARS
    assert size <= limits.GRAMMAR_CACHE_BYTES


def test_a_thousand_different_grammars_through_the_server(server):
    before = server.machine()["memory_bytes"]
    for number in range(300):
        assert server.chat(structured_outputs={"regex": f"a{{{number + 1}}}"}, max_tokens=1).status == 200
    after = server.machine()["memory_bytes"]
    assert after["engine"] - before["engine"] < 200e6
    assert after["http"] - before["http"] < 50e6


def test_one_of_them_only(server):
    both = server.chat(response_format={"type": "json_object"}, structured_outputs={"regex": "a"})
    assert (both.status, both.error["param"]) == (400, "structured_outputs")
    for given in ({}, {"regex": "a", "choice": ["b"]}):
        assert server.chat(structured_outputs=given).error["param"] == "structured_outputs"
