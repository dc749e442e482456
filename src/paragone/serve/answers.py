"""What the engine gives, in the words of the API. Streamed and whole answers are put together from the same
pieces, so that they are equal."""

import codecs
import time
import uuid
from collections.abc import Sequence
from typing import Any

from paragone.serve.asking import Asked
from paragone.serve.encoding import tokenizer_of
from paragone.serve.messages import Delta, Logprob
from paragone.serve.tool_calls import Called, Said, ToolParser
from paragone.text.tokenizer import Tokenizer

Json = dict[str, Any]


def token_text(tokenizer: Tokenizer, token: int) -> tuple[str, list[int]]:
    """A token as text, and its bytes."""
    data = tokenizer.token_bytes(token) if tokenizer.knows(token) else b""
    return data.decode("utf-8", "replace"), list(data)


class Answers:
    """The answers to one HTTP request: counts, and what every kind of answer begins with."""

    def __init__(self, asked: Asked, prefix: str, *, shown: bool = True) -> None:
        """`shown`: the answers' tokens are; `max_tokens` 0 asks for the prompt's alone."""
        self.asked, self.shown = asked, shown
        self.id = f"{prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.n = asked.settings.params.n
        self.prompt_tokens = sum(map(len, asked.prompts))
        self.completion_tokens = 0
        self.most_tokens = self.n * len(asked.prompts) * (asked.settings.params.max_tokens or 0)
        self.cached: dict[int, int] = {}
        self.reasons: list[str] = []
        self.seeds: dict[int, int] = {}

    def index(self, delta: Delta) -> int:
        """Its place among the choices."""
        return self.asked.stream.places[delta.request] * self.n + delta.choice

    def count(self, delta: Delta) -> None:
        """Takes note of a delta."""
        self.completion_tokens += len(delta.token_ids) if self.shown else 0
        if delta.reason is not None:
            self.reasons.append(delta.reason)
            if delta.choice == 0:
                self.cached[delta.request] = delta.cached_tokens
            if delta.seed is not None:
                self.seeds[self.index(delta)] = delta.seed

    @property
    def usage(self) -> Json:
        """So far."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self.cached.values())},
        }

    @property
    def settings(self) -> Json:
        """What the answers were made with."""
        described: Json = self.asked.settings.described()
        if self.seeds and "seed" not in described:
            described["seed"] = {"value": self.seeds[min(self.seeds)], "from": "drawn"}
        return described

    def head(self, kind: str) -> Json:
        """What every object begins with."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.asked.model.name}


class ChatChoice:
    """One answer of a conversation, as it grows."""

    def __init__(self, answers: Answers, index: int) -> None:
        self._index = index
        self._tokenizer = tokenizer_of(answers.asked.model)
        form = answers.asked.tools
        self._parser = None if form is None else ToolParser(form, answers.asked.tool_names)
        self._wants_logprobs = answers.asked.settings.params.logprobs is not None
        self._begun = False
        self._content: list[str] = []
        self._calls: list[Json] = []
        self._logprobs: list[Json] = []
        self._reason: str | None = None

    def pieces(self, delta: Delta) -> list[Json]:
        """The choices of the chunks that a delta makes; none while nothing of it is certain."""
        events = self._events(delta)
        reason = delta.reason
        if reason is not None and self._parser is not None and self._parser.count and reason == "stop":
            reason = "tool_calls"
        entries = [self._entry(entry) for entry in delta.logprobs]
        self._logprobs += entries
        self._reason = reason
        role: Json = {} if self._begun else {"role": "assistant", "content": ""}
        made = [role | self._delta(event) for event in events[:1]] + [
            self._delta(event) for event in events[1:]
        ]
        if not made and (role or reason is not None or entries):
            made = [role]
        self._begun = True
        choices: list[Json] = [{"index": self._index, "delta": each, "finish_reason": None} for each in made]
        if choices and self._wants_logprobs:
            choices[0]["logprobs"] = {"content": entries}
        if choices:
            choices[-1]["finish_reason"] = reason
        return choices

    def _events(self, delta: Delta) -> list[Said | Called]:
        if self._parser is None:
            events: list[Said | Called] = [Said(delta.text)] if delta.text else []
        else:
            events = self._parser.push(delta.text)
            if delta.reason is not None:
                events += self._parser.finish()
        for event in events:
            if isinstance(event, Said):
                self._content.append(event.text)
            elif event.name is not None:
                function = {"name": event.name, "arguments": event.arguments}
                self._calls.append({"id": event.id, "type": "function", "function": function})
            else:
                self._calls[event.index]["function"]["arguments"] += event.arguments
        return events

    @staticmethod
    def _delta(event: Said | Called) -> Json:
        if isinstance(event, Said):
            return {"content": event.text}
        function: Json = {"arguments": event.arguments}
        if event.name is None:
            return {"tool_calls": [{"index": event.index, "function": function}]}
        call = {"index": event.index, "id": event.id, "type": "function"}
        return {"tool_calls": [call | {"function": {"name": event.name} | function}]}

    def _entry(self, entry: Logprob) -> Json:
        def one(token: int, logprob: float) -> Json:
            text, data = token_text(self._tokenizer, token)
            return {"token": text, "logprob": logprob, "bytes": data}

        token, logprob, top = entry
        return one(token, logprob) | {"top_logprobs": [one(*each) for each in top]}

    def whole(self) -> Json:
        """The choice of an answer that is not streamed."""
        content = "".join(self._content)
        message: Json = {"role": "assistant", "content": content or (None if self._calls else "")}
        if self._calls:
            message["tool_calls"] = self._calls
        logprobs = {"content": self._logprobs} if self._wants_logprobs else None
        return {"index": self._index, "message": message, "logprobs": logprobs, "finish_reason": self._reason}


class TextChoice:
    """One completion of a prompt, as it grows. `echo`: with the prompt's text before it."""

    def __init__(self, answers: Answers, index: int, *, echo: bool) -> None:
        self._index, self._shown = index, answers.shown
        self._tokenizer = tokenizer_of(answers.asked.model)
        self._wants_logprobs = answers.asked.settings.params.logprobs is not None
        self._prompt = answers.asked.prompts[index // answers.n] if echo else None
        self._place, self._answers = index // answers.n, answers
        self._text: list[str] = []
        self._offset = 0
        self._shows_special = answers.asked.settings.show_special
        self._special = frozenset(self._tokenizer.special.values())
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._reason: str | None = None
        self._parts: list[Json] = []

    def pieces(self, delta: Delta, scores: Sequence[Logprob]) -> list[Json]:
        """The choices of the chunks that a delta makes. `scores` are those of the prompt's tokens."""
        text, logprobs = "", _no_logprobs()
        if self._prompt is not None:
            text = self._echo(self._prompt, scores, logprobs)
            self._prompt = None
        if self._shown:
            for entry in delta.logprobs:
                self._add(entry, logprobs, special=self._shows_special)
            text += delta.text
        self._reason = delta.reason if self._shown else delta.reason and "length"
        if not text and self._reason is None and not logprobs["tokens"]:
            return []
        self._text.append(text)
        self._parts.append(logprobs)
        shown = logprobs if self._wants_logprobs else None
        return [{"index": self._index, "text": text, "logprobs": shown, "finish_reason": self._reason}]

    def _echo(self, prompt: list[int], scores: Sequence[Logprob], logprobs: Json) -> str:
        shown = [i for i in prompt if self._tokenizer.knows(i)]
        if self._wants_logprobs:
            self._add((prompt[0], None, ()), logprobs, special=False)
            for entry in scores:
                self._add(entry, logprobs, special=False)
        return self._tokenizer.decode(shown)

    def _add(
        self,
        entry: tuple[int, float | None, tuple[tuple[int, float], ...]],
        logprobs: Json,
        *,
        special: bool,
    ) -> None:
        """A token, which begins where the characters of those before it end in the text. `special`: control
        tokens are in the text."""
        token, logprob, top = entry
        text, data = token_text(self._tokenizer, token)
        logprobs["tokens"].append(text)
        logprobs["token_logprobs"].append(logprob)
        logprobs["text_offset"].append(self._offset)
        if special or token not in self._special:
            self._offset += len(self._characters.decode(bytes(data)))
        if logprob is None:
            logprobs["top_logprobs"].append(None)
            return
        likely = {token_text(self._tokenizer, each)[0]: value for each, value in reversed(top)}
        logprobs["top_logprobs"].append(likely | {text: max(logprob, likely.get(text, logprob))})

    def whole(self) -> Json:
        """The choice of an answer that is not streamed."""
        logprobs = None
        if self._wants_logprobs:
            logprobs = _no_logprobs()
            for part in self._parts:
                for key, values in part.items():
                    logprobs[key] += values
        text = "".join(self._text)
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": self._reason}


def _no_logprobs() -> Json:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
