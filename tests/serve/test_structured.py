"""Answers of a given form: all that is said keeps it (row 15; test_grammars.py has the attacks)."""

import json
import random
import re

import jsonschema
import pytest

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


def test_one_of_them_only(server):
    both = server.chat(response_format={"type": "json_object"}, structured_outputs={"regex": "a"})
    assert (both.status, both.error["param"]) == (400, "structured_outputs")
    for given in ({}, {"regex": "a", "choice": ["b"]}):
        assert server.chat(structured_outputs=given).error["param"] == "structured_outputs"
