"""The command line: one clear line and the right exit code for every failure; output that can be piped."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from paragone.cli.compare import parse_size
from paragone.cli.main import COMMANDS, run
from paragone.errors import UsageError
from tests.real import GEMMA3, SMOLLM2, path_of

SMOL = str(path_of(SMOLLM2))


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], *([name, "--help"] for name in COMMANDS)])
def test_help(arguments, capsys):
    assert run(arguments) == 0
    assert "Usage: paragone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["comapre"], 2, "Did you mean compare"),
        (["--nope"], 2, "No such option"),
        (["pull"], 2, "Missing argument"),
        (["generate", "no-such-model", "x"], 66, "no model 'no-such-model'"),
        (["generate", "smollm2-135m-instuct", "x"], 66, "Did you mean smollm2-135m-instruct"),
        (["generate", "/no/such.gguf", "x"], 66, "no such file"),
        (["generate", SMOL, "x", "--temperature", "-1"], 2, "temperature is -1.0"),
        (["generate", SMOL, "x", "--temperature", "warm"], 2, "'warm' is not a valid"),
        (["generate", SMOL, "x", "--precision", "int3"], 2, "int3"),
        (["generate", SMOL, "x", "--top-k", "5"], 2, "--top-k does nothing at temperature 0"),
        (["generate", SMOL, "x", "--device", "cuda"], 2, "device 'cuda' cannot be used"),
        (["generate", SMOL, "x", "--device", "bogus"], 2, "device 'bogus' cannot be used"),
        (["generate", "x" * 300, "x"], 66, "no path and no model"),
        (["generate", SMOL, "x", "--max-tokens", "0"], 2, "max_tokens is 0"),
        (["generate", SMOL, "x", "--draft", str(path_of(GEMMA3))], 2, "cannot guess for"),
        (["generate", SMOL, "x", "--draft", "no-such-model"], 66, "no model 'no-such-model'"),
        (["generate", SMOL, ""], 2, "prompt is empty"),
        (["generate", SMOL, "word " * 9000, "--max-tokens", "1"], 2, "the model's context is 8192"),
        (["chat", str(path_of(GEMMA3))], 78, "no chat template"),
        (["rm", "nothing"], 66, "no model 'nothing'"),
        (["rm", "../x"], 2, "no name for a model"),
        (["pull", "hf:x"], 2, "is not hf:OWNER/NAME"),
        (["pull", "llama-7b"], 66, "no open download"),
        (["compare", "no-such-model"], 66, "no model"),
        (["compare", SMOL, "--precision", "int3"], 2, "Known: fp32, bf16, int8, int4"),
        (["compare", SMOL, "--max-memory", "lots"], 2, "is not a size"),
        (["compare", SMOL, "--text", "/no/such.txt"], 66, "No such file"),
        (["compare", SMOL, "--prompts", "/no/such.txt"], 66, "No such file"),
        (["runs", "show", "99"], 66, "no runs yet"),
    ],
)  # fmt: skip
def test_failures_are_one_line(arguments, code, message, home, capsys):
    assert run(arguments) == code
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 0


def test_corrupt_files(tmp_path, capsys):
    data = path_of(SMOLLM2).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[:50_000_000])
    assert run(["generate", str(tmp_path / "cut.gguf"), "x"]) == 65
    assert "truncated?" in capsys.readouterr().err
    (tmp_path / "text.gguf").write_text("hello " * 100)
    assert run(["generate", str(tmp_path / "text.gguf"), "x"]) == 65
    assert "not a GGUF file" in capsys.readouterr().err


def test_generate_and_logprobs(capsys):
    exactly = ["--precision", "fp32"]  # where rounding does not decide between two likely words
    assert run(["generate", SMOL, "The sky is", "--max-tokens", "4", *exactly]) == 0
    assert capsys.readouterr().out == " a canvas of colors\n"
    assert run(["generate", SMOL, "The sky is", "--max-tokens", "2", "--logprobs", "2", "--verbose"]) == 0
    captured = capsys.readouterr()
    assert "' a'" in captured.out
    assert "ended by length" in captured.err


def test_prompt_from_standard_input():
    command = [sys.executable, "-m", "paragone", "generate", SMOL, "--max-tokens", "4", "--precision", "fp32"]
    done = subprocess.run(command, input="The sky is", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, " a canvas of colors\n"), done.stderr


def test_a_reader_that_leaves_is_no_error():
    command = f"{sys.executable} -m paragone models | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_models(home, capsys):
    assert run(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["here"] == []
    assert len(listed["catalogue"]) > 40
    assert all(m["licence"] for m in listed["catalogue"])
    assert run(["models"]) == 0
    assert "No models on this machine yet" in capsys.readouterr().out


def test_families_name_every_model_of_the_catalogue(capsys):
    assert run(["families", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    named = [model for row in listed for model in row["models"]]
    assert run(["models", "--json"]) == 0
    catalogue = json.loads(capsys.readouterr().out)["catalogue"]
    assert sorted(named) == sorted(m["name"] for m in catalogue), "every known model runs, under one family"
    assert run(["families"]) == 0
    assert "qwen3moe" in capsys.readouterr().out


def test_the_prompt_is_shown_as_the_model_sees_it():
    command = [sys.executable, "-m", "paragone", "chat", SMOL, "--show-prompt", "--max-tokens", "3"]
    done = subprocess.run(command, input="Hi\n/quit\n", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'<|im_start|>' 1 |" in done.stderr
    assert "'Hi'" in done.stderr


def test_sizes():
    assert parse_size("600MB") == 600_000_000
    assert parse_size("1.5 GiB") == 3 << 29
    assert parse_size("8g") == 8_000_000_000
    assert parse_size(None) is None
    for bad in ("", "MB", "-1GB", "1e9", "0", "9" * 30):
        with pytest.raises(UsageError):
            parse_size(bad)


def test_chat_reads_commands_and_messages():
    lines = ["/help", "/nonsense", "/set temperature hot", "/set max_tokens 12", "Name the capital of France.",
             "/undo", "/system Be brief.", '"""', "What is", "2+2?", '"""', "/settings", "/quit"]  # fmt: skip
    command = [sys.executable, "-m", "paragone", "chat", SMOL, "--precision", "bf16"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "/undo" in done.stdout
    assert "Paris" in done.stdout
    assert "max_tokens = 12" in done.stdout
    assert "no command /nonsense" in done.stderr
    assert done.stderr.count("error:") == 2


# What runs in the background of a shell is started deaf to Ctrl-C, and so is what it starts.
HEEDING = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from paragone.cli.main import main; main()"
)


def test_interrupting_stops_the_answer_and_not_the_chat():
    master, slave = pty.openpty()
    command = [sys.executable, "-c", HEEDING, "chat", SMOL, "--max-tokens", "4000"]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    seen = b""

    def until(text, size=0):
        nonlocal seen
        deadline = time.monotonic() + 60
        while text not in seen or len(seen) < size:
            ready, _, _ = select.select([master], [], [], 1)
            assert time.monotonic() < deadline, seen
            if ready:
                seen += os.read(master, 4096)

    until(b"> ")
    seen = b""
    os.write(master, b"Write a very long story about ferries.\n")
    until(b"ferries", 120)
    os.killpg(process.pid, signal.SIGINT)
    until(b"stopped")
    os.write(master, b"/quit\n")
    until(b"quit")
    assert process.wait(20) == 0
    os.close(master)


def test_interrupting_generate_is_130():
    command = [sys.executable, "-c", HEEDING, "generate", SMOL, "Count: 1 2 3", "--max-tokens", "8000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(3)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error.strip() == b""


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_without_the_kernels(precision):
    """As after an installation without a compiler: PyTorch runs, and one line says what is missing."""
    code = (
        "import sys; sys.modules['paragone.kernels._native'] = None; "
        "from paragone.cli.main import run; sys.exit(run(sys.argv[1:]))"
    )
    arguments = "generate", SMOL, "The capital of France is", "--max-tokens", "3", "--precision", precision
    found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "Paris" in found.stdout
    (line,) = (line for line in found.stderr.splitlines() if "kernels" in line)
    assert line.startswith("note: the compiled kernels are missing")
