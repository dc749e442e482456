"""Clients that know nothing of Paragone: the official one for Python. (Others: benchmarks/clients.py.)"""

import json

import openai
import pytest
from pydantic import BaseModel

from tests.serve.test_tools import WEATHER


@pytest.fixture(scope="module")
def client(smollm2_server):
    return openai.OpenAI(base_url=f"{smollm2_server.url}/v1", api_key="none", max_retries=0)


MESSAGES = [{"role": "user", "content": "What is the capital of France? One sentence."}]


def test_it_answers(client):
    found = client.chat.completions.create(model="smollm2", messages=MESSAGES, max_tokens=30, temperature=0)
    assert "Paris" in found.choices[0].message.content
    assert found.usage.completion_tokens <= 30


def test_streamed(client):
    asked = {"model": "smollm2", "messages": MESSAGES, "max_tokens": 30, "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    with client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens <= 30
    with client.chat.completions.stream(**asked) as stream:
        assert stream.get_final_completion().choices[0].message.content == whole


def test_parsed_into_a_class(client):
    class Place(BaseModel):
        city: str
        country: str

    found = client.chat.completions.parse(
        model="smollm2", messages=MESSAGES, response_format=Place, max_tokens=60, temperature=0
    )
    assert isinstance(found.choices[0].message.parsed, Place)


def test_tools(client):
    found = client.chat.completions.create(
        model="smollm2",
        messages=MESSAGES,
        tools=[WEATHER],
        tool_choice="required",
        max_tokens=60,
        temperature=0,
    )
    call = found.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert "city" in json.loads(call.function.arguments)
    assert found.choices[0].finish_reason == "tool_calls"


def test_completions_and_models(client):
    assert [m.id for m in client.models.list()] == ["smollm2"]
    asked = {"model": "smollm2", "max_tokens": 4, "logprobs": 1, "temperature": 0}
    found = client.completions.create(prompt=["A, B,", "The capital of France is"], **asked)
    assert found.choices[0].text.startswith(" C")
    assert "Paris" in found.choices[1].text
    assert len(found.choices[0].logprobs.tokens) == 4


def test_errors_are_its_own(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="smollm2", messages=MESSAGES, temperature=5)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-5", messages=MESSAGES)
    assert missing.value.code == "model_not_found"


async def ask_many(url):
    import asyncio

    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        asked = {"model": "smollm2", "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
        found = await asyncio.gather(*(client.chat.completions.create(**asked) for _ in range(16)))
        return {answer.choices[0].message.content for answer in found}


def test_many_at_once_say_the_same(smollm2_server):
    import asyncio

    assert len(asyncio.run(ask_many(smollm2_server.url))) == 1
