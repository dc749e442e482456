"""Helper processes: killed when they are late, replaced when they are gone."""

import sys
import time

import pytest

from paragone.text.killable import LineProcess, ProcessEnded, TookTooLong

ECHO = """
import sys, time
time.sleep(0.8)
for number, line in enumerate(sys.stdin):
    if "sleep" in line: time.sleep(60)
    if "die" in line or (number >= 2 and "tired" in line): sys.exit(1)
    print(line.strip().upper(), flush=True)
"""


@pytest.fixture
def process():
    made = LineProcess([sys.executable, "-c", ECHO], 0.6, b"hello\n")
    yield made
    made.stop()


def test_its_start_does_not_count(process):
    assert process.ask(b"one\n") == b"ONE\n"
    assert process.ask(b"two\n") == b"TWO\n"


def test_one_that_is_late_is_killed(process):
    process.ask(b"one\n")
    begin = time.monotonic()
    with pytest.raises(TookTooLong):
        process.ask(b"sleep\n")
    assert time.monotonic() - begin < 2
    assert process.pid is None
    assert process.ask(b"three\n") == b"THREE\n"


def test_one_that_has_used_itself_up_is_replaced(process):
    process.ask(b"one\n")
    first = process.pid
    assert process.ask(b"tired\n") == b"TIRED\n"
    assert process.pid != first


def test_one_that_always_ends_is_an_error(process):
    with pytest.raises(ProcessEnded):
        process.ask(b"die\n")


def test_one_that_cannot_be_started():
    with pytest.raises(ProcessEnded, match="could not be started"):
        LineProcess(["/nowhere/at/all"], 1.0, b"x\n").ask(b"x\n")
