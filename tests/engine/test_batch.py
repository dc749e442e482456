"""Files of prompts: every one answered exactly once, whatever interrupts it."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from paragone.cli.main import run
from paragone.engine.batch import AnswerFile, answer_file, read_prompts
from paragone.engine.params import SamplingParams
from paragone.errors import MalformedData
from tests.cli.test_main import HEEDING
from tests.real import SMOLLM2, path_of

SMOL = str(path_of(SMOLLM2))


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


PROMPTS = [
    {"id": "a", "prompt": "The sky is"},
    {"prompt": [1, 2, 3], "max_tokens": 2, "ignore_eos": True},
    {"messages": [{"role": "user", "content": "Name the capital of France."}]},
    {"prompt": "2 + 2 =", "n": 2, "temperature": 1.0, "seed": 4},
    {"prompt": "x " * 9000},
    {"prompt": "logit", "logit_bias": {"17": 100.0}, "max_tokens": 2},
    {"prompt": "bad", "temperature": -1},
    {"messages": ["hi"]},
    {"messages": {"role": "user", "content": "hi"}},
    {"prompt": "bad", "temperature": 10**400},
    {"prompt": "The sky is", "n": 3, "temperature": 1.0, "seed": 9, "prompt_logprobs": 1, "ignore_eos": True},
]


def test_every_prompt_has_one_answer(smollm2, tmp_path):
    source, target = write(tmp_path / "in.jsonl", PROMPTS), tmp_path / "out.jsonl"
    answers, seen = AnswerFile(target), []
    failed = answer_file(
        smollm2, read_prompts(source), answers, SamplingParams(max_tokens=8), lambda *a: seen.append(a)
    )
    answers.close()
    by_index = {line["index"]: line for line in lines_of(target)}
    assert sorted(by_index) == list(range(11))
    assert failed == 5
    assert by_index[0]["id"] == "a"
    assert by_index[0]["text"] == smollm2.generate("The sky is", max_tokens=8).text
    assert by_index[1]["tokens"] == 2
    assert "Paris" in by_index[2]["text"]
    assert [c["seed"] for c in by_index[3]["choices"]] == [4, 5]
    assert "context is 8192" in by_index[4]["error"]
    assert by_index[5]["tokens"] == 2
    assert "temperature is -1" in by_index[6]["error"]
    assert "message 1: needs a role" in by_index[7]["error"]
    assert "is a list of messages, not dict" in by_index[8]["error"]
    assert "temperature is 1000" in by_index[9]["error"]
    assert [c["seed"] for c in by_index[10]["choices"]] == [9, 10, 11]
    assert len(by_index[10]["prompt_logprobs"]) == len(smollm2.encode("The sky is")) - 1
    assert seen[-1] == (11, 11)


def test_half_a_line_is_written_anew(smollm2, tmp_path):
    prompts = [{"prompt": f"Number {n}:", "max_tokens": 3} for n in range(5)]
    target = tmp_path / "out.jsonl"
    target.write_text('{"index": 3, "text": "kept"}\n{"index": 1, "te')
    answers = AnswerFile(target)
    assert answers.done == {3}
    answer_file(smollm2, prompts, answers, SamplingParams(), lambda *_: None)
    answers.close()
    lines = lines_of(target)
    assert sorted(line["index"] for line in lines) == [0, 1, 2, 3, 4]
    assert lines[0]["text"] == "kept"
    assert not smollm2.engine.has_work()


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_and_taken_up_again(kill, tmp_path, smollm2):
    prompts = [{"prompt": f"Number {n}:", "max_tokens": 16, "ignore_eos": True} for n in range(100)]
    source, target = write(tmp_path / "in.jsonl", prompts), tmp_path / "out.jsonl"
    arguments = ["generate", SMOL, "--input", str(source), "--output", str(target)]
    few = [sys.executable, "-c", HEEDING, *arguments, "--max-num-seqs", "4"]  # so that it takes its time
    process = subprocess.Popen(few, stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while time.monotonic() < end and (not target.exists() or target.read_bytes().count(b"\n") < 5):
        time.sleep(0.02)
    process.send_signal(kill)
    process.wait(60)
    first = target.read_bytes()
    before = first[: first.rfind(b"\n") + 1]
    assert 5 <= before.count(b"\n") < 100
    assert run(arguments) == 0
    after = target.read_bytes()
    assert after.startswith(before)
    assert sorted(line["index"] for line in lines_of(target)) == list(range(100))
    assert run(arguments) == 0
    assert target.read_bytes() == after


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "in.jsonl:1"),
        ("[]", "not an object"),
        ("{}", "not an object"),
        ('{"prompt": "x", "messages": []}', "not an object"),
        ('{"prompt": "x", "tempature": 1}', "unknown field tempature"),
        ("[" * 100000, "in.jsonl:1"),
        ("\xff", "in.jsonl:1"),
    ],
)
def test_bad_lines_are_named_before_any_work(line, message, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(line.encode("latin-1"))
    with pytest.raises(MalformedData, match=message):
        read_prompts(tmp_path / "in.jsonl")


def test_files_that_are_no_answers_stay_as_they_are(smollm2, tmp_path):
    other = tmp_path / "notes.txt"
    other.write_text("my notes\nmore\n")
    with pytest.raises(MalformedData, match=r"notes.txt:1: no answer"):
        AnswerFile(other)
    assert other.read_text() == "my notes\nmore\n"
    other.write_text("my only note")
    with pytest.raises(MalformedData, match="last line is no answer"):
        AnswerFile(other)
    assert other.read_text() == "my only note"
    foreign = tmp_path / "out.jsonl"
    foreign.write_text('{"index": 7}\n')
    answers = AnswerFile(foreign)
    with pytest.raises(MalformedData, match="answer to prompt 7, and there are 1"):
        answer_file(replace(smollm2), [{"prompt": "x"}], answers, SamplingParams(), lambda *_: None)
    answers.close()


@pytest.mark.parametrize(
    ("extra", "code"),
    [(["--input", "a"], 2), (["--output", "a"], 2), (["x", "--input", "/no/such", "--output", "a"], 2),
     (["--input", "/no/such", "--output", "a"], 66)],
)  # fmt: skip
def test_flags(extra, code, capsys):
    assert run(["generate", SMOL, *extra]) == code
    assert capsys.readouterr().err.startswith("error: ")
