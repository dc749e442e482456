"""A file of prompts to a file of answers, many at once, that can be interrupted and taken up again.

One JSON object a line, in and out. A prompt has "prompt" (text or token ids) or "messages", perhaps an "id",
and settings of SamplingParams by name. Answers come in the order in which they end; each names its prompt by
"index" (from 0) and, where it has one, "id".
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, BinaryIO

from paragone import limits
from paragone.engine.generation import interrupts_waiting
from paragone.engine.model import Model
from paragone.engine.params import SamplingParams
from paragone.engine.request import Completion, Request, TokenLogprobs
from paragone.errors import MalformedData, NotFound, UsageError, WriteFailed, message_of

AHEAD = 256  # prompts that are in line beside those that run
FIELDS = {field.name for field in fields(SamplingParams)}
BEGINNING = b'{"index": '  # of every answer
OTHERS = {"id", "prompt", "messages"}


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; raises MalformedData naming the first that is no prompt, before any work."""
    try:
        raw = path.read_bytes()
    except OSError as err:
        raise NotFound(f"{path}: {err.strerror}") from None
    prompts = []
    for number, line in enumerate(raw.splitlines(), 1):
        if not line.strip():
            continue
        try:
            prompt = json.loads(line)
        except (ValueError, RecursionError) as err:
            raise MalformedData(f"{path}:{number}: {err}") from None
        if not isinstance(prompt, dict) or ("prompt" in prompt) == ("messages" in prompt):
            raise MalformedData(f'{path}:{number}: not an object with either "prompt" or "messages"')
        unknown = prompt.keys() - FIELDS - OTHERS
        if unknown:
            raise MalformedData(f"{path}:{number}: unknown field {', '.join(sorted(unknown))}")
        prompts.append(prompt)
    return prompts


class AnswerFile:
    """What is answered already, and where the next answers go: a whole line each, or none."""

    def __init__(self, path: Path) -> None:
        """Raises MalformedData where the file is there and holds something else."""
        self.path = path
        self.done: set[int] = set()
        whole = 0
        if path.exists():
            raw = path.read_bytes()
            whole = raw.rfind(b"\n") + 1  # an interrupted write leaves half a line
            for number, line in enumerate(raw[:whole].splitlines(), 1):
                self.done.add(self._index(line, number))
            if raw[whole:][: len(BEGINNING)] != BEGINNING[: len(raw) - whole]:
                raise MalformedData(f"{path}: its last line is no answer: take another file")
        try:
            self._file: BinaryIO = path.open("r+b" if path.exists() else "w+b")
            self._file.truncate(whole)
            self._file.seek(whole)
        except OSError as err:
            raise WriteFailed(f"{path}: {err.strerror}") from None

    def _index(self, line: bytes, number: int) -> int:
        try:
            index = json.loads(line)["index"]
        except (ValueError, KeyError, TypeError, RecursionError):
            index = None
        if not isinstance(index, int) or isinstance(index, bool) or index < 0:
            raise MalformedData(f'{self.path}:{number}: no answer with an "index": take another file')
        return index

    def write(self, answer: dict[str, Any]) -> None:
        """Appends an answer; after it returns, an interruption does not lose it."""
        try:
            self._file.write(json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            self._file.flush()
        except OSError as err:
            raise WriteFailed(f"{self.path}: {err.strerror}") from None
        self.done.add(answer["index"])

    def close(self) -> None:
        """Makes sure that all is on the disk."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as err:
            raise WriteFailed(f"{self.path}: {err.strerror}") from None
        finally:
            self._file.close()


def answer_file(
    model: Model,
    prompts: list[dict[str, Any]],
    answers: AnswerFile,
    params: SamplingParams,
    progress: Callable[[int, int], None],
) -> int:
    """Answers all prompts that have none yet; `progress` is told how many are done. Returns how many failed:
    a prompt that cannot be answered gets a line that says why, and the others go on. Raises MalformedData
    where the answers belong to other prompts. The model's engine has nothing else to do meanwhile."""
    if max(answers.done, default=-1) >= len(prompts):
        last = max(answers.done)
        raise MalformedData(
            f"{answers.path} has an answer to prompt {last}, and there are {len(prompts)} prompts"
        )
    engine = model.engine
    waiting = ((i, p) for i, p in enumerate(prompts) if i not in answers.done)
    places: dict[int, int] = {}
    ended: dict[int, dict[int, Completion]] = {}
    failed = 0
    progress(len(answers.done), len(prompts))
    try:
        while True:
            with interrupts_waiting():
                failed += _fill(model, waiting, places, answers, params)
                chunks = engine.step() if places else []
            progress(len(answers.done), len(prompts))
            if not places:
                return failed
            for chunk in chunks:
                if chunk.completion is None or chunk.index not in places:
                    continue
                done = ended.setdefault(chunk.index, {})
                done[chunk.choice] = chunk.completion
                if len(done) == chunk.completion.params.n:
                    failed += any(completion.error for completion in done.values())
                    index = places[chunk.index]
                    answers.write(_line(index, prompts[index], [done[choice] for choice in sorted(done)]))
                    del places[chunk.index], ended[chunk.index]
    finally:
        for number in places:
            engine.abort(number)


def _fill(
    model: Model,
    waiting: Iterator[tuple[int, dict[str, Any]]],
    places: dict[int, int],
    answers: AnswerFile,
    params: SamplingParams,
) -> int:
    """Puts prompts in line, so that steps are full; returns how many were refused."""
    refused = 0
    while len(places) < model.engine.config.max_num_seqs + AHEAD:
        found = next(waiting, None)
        if found is None:
            break
        index, prompt = found
        try:
            places[model.engine.add(_request(model, prompt, params))] = index
        except Exception as err:  # whatever is the matter with one line, the others go on
            refused += 1
            answers.write(_named(index, prompt) | {"error": message_of(err)})
    return refused


def _request(model: Model, prompt: dict[str, Any], params: SamplingParams) -> Request:
    own = {name: value for name, value in prompt.items() if name in FIELDS}
    if isinstance(own.get("logit_bias"), dict):  # JSON has texts as keys
        own["logit_bias"] = {int(k) if k.isdecimal() else k: v for k, v in own["logit_bias"].items()}
    params = replace(params, **own)
    if "messages" in prompt:
        return model.chat_request(prompt["messages"], params)
    text = prompt["prompt"]
    if isinstance(text, str) and len(text) > limits.CONTEXT_LENGTH * 16:
        raise UsageError(f"the prompt has {len(text):,} characters")
    return Request(model.encode(text), params)


def _named(index: int, prompt: dict[str, Any]) -> dict[str, Any]:
    return {"index": index} | ({"id": prompt["id"]} if "id" in prompt else {})


def _line(index: int, prompt: dict[str, Any], done: list[Completion]) -> dict[str, Any]:
    """An answer as it is written; with several choices they stand in a list."""
    first = done[0]
    shown = [
        {"text": c.text, "finish_reason": c.finish_reason, "tokens": len(c.token_ids)}
        | ({"error": c.error} if c.error else {})
        | ({"seed": c.params.seed} if c.params.seed is not None else {})
        | ({"logprobs": _entries(c.logprobs)} if c.logprobs else {})
        for c in done
    ]
    body: dict[str, Any] = shown[0] if len(shown) == 1 else {"choices": shown}
    body["prompt_tokens"] = first.prompt_tokens
    if first.params.prompt_logprobs is not None:
        body["prompt_logprobs"] = _entries(first.prompt_logprobs)
    return _named(index, prompt) | body


def _entries(logprobs: list[TokenLogprobs]) -> list[Any]:
    return [[entry.token_id, entry.logprob, list(entry.top)] for entry in logprobs]
