"""Calls of tools: reading them out of an answer, whatever its pieces, and having them made."""

import json

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paragone.serve.tool_calls import Called, Said, ToolParser
from paragone.serve.tool_formats import GENERIC, HERMES, LLAMA3, MISTRAL, format_of, with_tools
from tests.serve.harness import serving
from tests.serve.tiny_model import write_tiny_model

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 10},
                "days": {"type": "integer", "maximum": 9},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
STOP = {"type": "function", "function": {"name": "stop"}}


def read(form, text, size):
    parser, said, calls = ToolParser(form), "", {}
    events = [
        e for at in range(0, len(text), size) for e in parser.push(text[at : at + size])
    ] + parser.finish()
    for event in events:
        if isinstance(event, Said):
            said += event.text
        elif event.name is not None:
            assert event.index == len(calls)
            assert len(event.id) == (form.id_chars or len("call_") + 24)
            calls[event.index] = [event.name, event.arguments]
        else:
            assert isinstance(event, Called)
            calls[event.index][1] += event.arguments
    return said, [tuple(call) for call in calls.values()]


CASES = [
    (HERMES, 'Hi <tool_call>\n{"name": "f", "arguments": {"a": "}\\"{", "b": [1, {"c": 2}]}}\n</tool_call>',
     ("Hi ", [("f", '{"a": "}\\"{", "b": [1, {"c": 2}]}')])),
    (HERMES, '<tool_call>{"arguments": {"x": 1}, "name": "g"}</tool_call>\n<tool_call>{"name":"h","arguments":{}}</tool_call>',
     ("", [("g", '{"x": 1}'), ("h", "{}")])),
    (HERMES, "plain text < tool <tool_ca", ("plain text < tool <tool_ca", [])),
    (HERMES, "<tool_call>not json</tool_call>", ("<tool_call>not json</tool_call>", [])),
    (HERMES, '<tool_call>{"a": 1}</tool_call> x', ('<tool_call>{"a": 1}</tool_call> x', [])),
    (HERMES, '{"name": "f", "arguments": {}}', ('{"name": "f", "arguments": {}}', [])),
    (HERMES, "   ", ("   ", [])),
    (HERMES, '<tool_call>{"name": "f", "arguments": {}}', ("", [("f", "{}")])),
    (MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {"b": "x"}}]',
     ("", [("f", '{"a": 1}'), ("g", '{"b": "x"}')])),
    (MISTRAL, '[TOOL_CALLS]get_weather[ARGS]{"city": "Rome"}[TOOL_CALLS]f[ARGS]{}',
     ("", [("get_weather", '{"city": "Rome"}'), ("f", "{}")])),
    (MISTRAL, "text [TOOL", ("text [TOOL", [])),
    (LLAMA3, '{"name": "f", "parameters": {"q": "x"}}', ("", [("f", '{"q": "x"}')])),
    (LLAMA3, '<|python_tag|>{"name": "f", "parameters": {"q": "x"}}; {"name": "g", "parameters": {}}',
     ("", [("f", '{"q": "x"}'), ("g", "{}")])),
    (HERMES, '<tool_call>{"name": "f"}</tool_call>', ("", [("f", "{}")])),
    (HERMES, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', ("", [("f", '{"a": 1}')])),
    (LLAMA3, '{"no": 1} more', ('{"no": 1} more', [])),
    (LLAMA3, ' Hello {"name": "f"}', (' Hello {"name": "f"}', [])),
]  # fmt: skip


@pytest.mark.parametrize(("form", "text", "want"), CASES)
def test_calls_are_read_whatever_the_pieces(form, text, want):
    assert {size: read(form, text, size) for size in (1, 2, 3, 5, 8, 1000)} == dict.fromkeys(
        (1, 2, 3, 5, 8, 1000), want
    )


def test_an_object_that_names_no_tool_is_an_answer():
    text = '{"name": "Alice", "age": 30}'
    parser = ToolParser(LLAMA3, {"get_weather"})
    events = [e for c in text for e in parser.push(c)] + parser.finish()
    assert "".join(e.text for e in events) == text


PIECES = st.lists(
    st.sampled_from(["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "{", "}", "[", "]", '"', "\\",
                     '"name"', ": ", ", ", '"arguments"', '"parameters"', '"f"', "f", "1", " ", "\n", ";", "é",
                     '{"name": "f", "arguments": {"a": 1}}']),
    max_size=14,
)  # fmt: skip


@given(st.sampled_from([HERMES, MISTRAL, LLAMA3, GENERIC]), PIECES, st.integers(1, 6))
@settings(max_examples=5000)
def test_any_text_gives_the_same_in_any_pieces(form, pieces, size):
    text = "".join(pieces)
    said, calls = read(form, text, 10_000)
    again, others = read(form, text, size)
    assert calls == others
    if not calls:
        assert said == again == text  # nothing is lost
    for name, _ in calls:
        assert name


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{% if tools %}<tool_call>{% endif %}", HERMES), ("{% if tools %}[TOOL_CALLS]{% endif %}", MISTRAL),
        ('{% if tools %}{"name": .., "parameters": ..}{% endif %}', LLAMA3), ("{{ messages }}", GENERIC), (None, GENERIC),
    ],
)  # fmt: skip
def test_the_format_is_the_templates(template, form):
    assert format_of(template) == form


def test_a_model_without_tools_is_told():
    tools = [WEATHER]
    told = with_tools(GENERIC, [{"role": "user", "content": "Hi"}], tools)
    assert told[0]["role"] == "system"
    assert "get_weather" in told[0]["content"]
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
    messages = [
        {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": "1"},
    ]  # fmt: skip
    told = with_tools(GENERIC, messages, tools)
    assert told[0]["content"].startswith("Be brief.\n\nYou may call")
    assert '"get_weather"' in told[1]["content"]
    assert told[2] == {"role": "user", "content": "<tool_response>sunny</tool_response>"}


STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('take turns') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)


def test_a_template_without_a_system_message_and_with_turns(tmp_path):
    """As Gemma's and the first of Mistral's are."""
    folder = write_tiny_model(tmp_path / "strict", template=STRICT)
    asked = {"role": "user", "content": "Hi"}
    calls = [
        {"id": name, "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
        for name in "ab"
    ]
    answers = [{"role": "tool", "content": name, "tool_call_id": name} for name in "ab"]
    turns = [asked, {"role": "assistant", "content": None, "tool_calls": calls}, *answers, asked]
    with serving(f"tiny={folder}:bf16", "--kv-cache-mb", "64", model="tiny") as server:
        for messages in ([asked], turns):
            body = {"model": "tiny", "messages": messages, "tools": [WEATHER]}
            shown = server.post("/apply-template", body)
            assert shown.status == 200, shown.data
            assert shown.json["prompt"].startswith("<|im_start|>user\nYou may call functions.")
        system = [{"role": "system", "content": "Be brief."}, asked]
        refused = server.post("/apply-template", body | {"messages": system})
        assert (refused.status, refused.error["code"]) == (400, "chat_template_error")


def test_roles_take_turns_in_words_that_every_template_has():
    """Two calls at once, their answers, and what the user says next."""
    answers = [{"role": "tool", "content": text, "tool_call_id": "x"} for text in ("sunny", "late")]
    told = with_tools(GENERIC, [*answers, {"role": "user", "content": "And?"}], [])
    wanted = "<tool_response>sunny</tool_response>\n<tool_response>late</tool_response>\nAnd?"
    assert told == [{"role": "user", "content": wanted}]


@pytest.mark.parametrize("given", ["call_0123456789abcdef01234567", "abc", "a-b_c", "123456789", "é" * 20])
def test_mistrals_templates_get_ids_of_nine(given):
    call = {"id": given, "type": "function", "function": {"name": "f", "arguments": {}}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "x", "tool_call_id": given},
    ]
    said, answered = with_tools(MISTRAL, messages, [WEATHER])
    (known,) = said["tool_calls"]
    assert known["id"] == answered["tool_call_id"]
    assert len(known["id"]) == 9
    assert known["id"].isascii()
    assert known["id"].isalnum()
    assert call["id"] == given
    assert len(MISTRAL.new_id()) == 9


def calls_of(events):
    calls: dict[int, list[str]] = {}
    for event in events:
        for choice in event["choices"]:
            for part in choice["delta"].get("tool_calls", []):
                if "name" in part["function"]:
                    calls[part["index"]] = [part["function"]["name"], ""]
                calls[part["index"]][1] += part["function"]["arguments"]
    return [tuple(call) for call in calls.values()]


def check_forced(server):
    """A call has to come, and does: whole and streamed the same, with arguments that keep the schema."""
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        asked = {
            "tools": [WEATHER], "tool_choice": choice, "temperature": 1.2, "seed": 4, "max_tokens": 200,
            "parallel_tool_calls": False,
        }  # fmt: skip
        whole = server.chat("Rome?", **asked).json["choices"][0]
        assert whole["finish_reason"] == "tool_calls", whole
        (call,) = whole["message"]["tool_calls"]
        assert call["function"]["name"] == "get_weather"
        jsonschema.validate(json.loads(call["function"]["arguments"]), WEATHER["function"]["parameters"])
        assert whole["message"]["content"] is None
        streamed = server.chat("Rome?", **asked, stream=True).events
        assert calls_of(streamed) == [("get_weather", call["function"]["arguments"])]
        assert streamed[-1]["choices"][0]["finish_reason"] == "tool_calls"
        # The answer goes back, and the model goes on.
        messages = [
            {"role": "user", "content": "Rome?"}, {**whole["message"]},
            {"role": "tool", "tool_call_id": call["id"], "content": "sunny"},
        ]  # fmt: skip
        body = {"model": server.model, "messages": messages, "tools": [WEATHER], "max_tokens": 4}
        assert server.post("/v1/chat/completions", body).status == 200


def test_a_call_that_has_to_come(server):
    check_forced(server)


TEMPLATES = {
    "hermes": (
        "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }} as <tool_call>{}</tool_call><|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>"
        "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
        "{% endfor %}<|im_start|>assistant\n"
    ),
    "mistral": (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}[TOOL_CALLS]{{ c.function.name }}{% endfor %}{% endfor %}"
    ),
    "llama3": (
        '{% if tools %}Use {"name": .., "parameters": ..}: {{ tools | tojson }}{% endif %}'
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_call_in_every_familys_format(tmp_path, name):
    folder = write_tiny_model(tmp_path / name, template=TEMPLATES[name])
    with serving(f"tiny={folder}:bf16", "--kv-cache-mb", "64", model="tiny") as server:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "tools": [WEATHER]}
        assert "get_weather" in server.post("/apply-template", body).json["prompt"]
        check_forced(server)


def test_several_calls(server):
    asked = {"tools": [WEATHER, STOP], "tool_choice": "required", "temperature": 1.2, "max_tokens": 300}
    for seed in range(6):
        whole = server.chat("Now", **asked, seed=seed).json["choices"][0]
        streamed = calls_of(server.chat("Now", **asked, seed=seed, stream=True).events)
        calls = [
            (c["function"]["name"], c["function"]["arguments"])
            for c in whole["message"].get("tool_calls", [])
        ]
        assert calls == streamed
        assert {name for name, _ in calls} <= {"get_weather", "stop"}
        assert calls


def test_tools_that_may_be_called(server):
    """With "auto" the model decides; whatever a random one says is an answer."""
    for seed in range(5):
        assert server.chat(tools=[WEATHER], seed=seed, temperature=1).status == 200
    assert "get_weather" not in server.post(
        "/apply-template", {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "tools": []}
    ).json["prompt"]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "nope"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "web"}]}, "tools[0]"),
        ({"tools": [WEATHER] * 129}, "tools"),
        ({"tools": [WEATHER], "tool_choice": "required", "response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "nope"}}}], "tool_choice": "required"}, "tools"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(server, fields, param):
    found = server.chat(**fields)
    assert found.status == 400, found.data
    assert found.error["param"].startswith(param), found.data
