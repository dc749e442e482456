"""An engine's process that dies, hangs, or loses what it was forked from (rows 22, 24)."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.serve.harness import children


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_it(own, number):
    server = own()
    engine = server.engine_pid()
    pid = server.process.pid
    family = [*children(pid), engine]
    assert server.fork_server_pid() in family
    server.stop(number)
    deadline = time.monotonic() + 5
    while any(os.path.exists(f"/proc/{pid}") and b"Z" not in _state(pid) for pid in family):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return b"Z"


def test_an_engine_that_ends_too_often(own):
    """A fourth end within a minute is one too many."""
    server = own()
    for _ in range(3):
        os.kill(server.engine_pid(), signal.SIGKILL)
        server.wait_until_ready(30)
    os.kill(server.engine_pid(), signal.SIGKILL)
    assert server.process.wait(10) == 70
    server.wait_for_event("given_up")


def check_another(server, than):
    """There is an engine, another than that."""
    server.wait_until_ready(30)
    assert server.engine_pid() != than


def test_another_engine_needs_no_import(own):
    """It is forked: it has the parent that the first had."""
    server = own()
    first, parent = server.engine_pid(), server.fork_server_pid()
    os.kill(first, signal.SIGSEGV)
    check_another(server, first)
    assert server.fork_server_pid() == parent
    assert [event["exit_code"] for event in server.events("engine_ended")] == [-signal.SIGSEGV]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_what_engines_are_forked_from_is_lost(own, number):
    """Gone, it takes its engine with it; stopped, it does not answer when that ends. There is another."""
    server = own()
    parent, engine = server.fork_server_pid(), server.engine_pid()
    os.kill(parent, number)
    if number == signal.SIGSTOP:
        os.kill(engine, signal.SIGKILL)
    server.wait_for_event("engine_ended")
    server.wait_until_ready(30)
    assert server.fork_server_pid() != parent
    assert _state(parent) == _state(engine) == b"Z", "neither is left"


def test_an_engine_that_hangs(quick):
    """Stopped in its tracks, it says nothing; it is killed, and another takes its place."""
    server = quick("--step-timeout", "1")
    engine = server.engine_pid()
    os.kill(engine, signal.SIGSTOP)
    begin = time.monotonic()
    found = server.complete()
    assert (found.status, found.error["code"]) == (500, "engine_error")
    assert time.monotonic() - begin < 15
    server.wait_for_event("engine_hangs")
    check_another(server, engine)


def test_an_engine_that_hangs_while_nobody_stays(quick):
    """Whoever asks gives up before the server does, one after the other: it is killed all the same."""
    server = quick("--step-timeout", "2")
    engine = server.engine_pid()
    os.kill(engine, signal.SIGSTOP)
    assert [server.complete(timeout=0.2).status for _ in range(3)] == [504] * 3
    server.wait_for_event("engine_hangs")
    check_another(server, engine)


def test_health_while_there_is_no_engine(quick):
    """The first time another is there at once, the second time after half a second."""
    server = quick()
    os.kill(server.engine_pid(), signal.SIGKILL)
    server.wait_until_ready(30)
    os.kill(server.engine_pid(), signal.SIGKILL)
    seen = set()
    deadline = time.monotonic() + 5
    while 503 not in seen and time.monotonic() < deadline:
        seen.add(server.get("/health").status)
    assert 503 in seen
    server.wait_until_ready(30)
    assert server.get("/health").status == 200


def test_what_cannot_be_imported_is_named():
    """In a line: the process that engines are forked from has nobody else to tell."""
    code = (
        "import runpy, sys; sys.modules['llguidance'] = None;"
        "runpy.run_module('paragone.serve.fork_server', run_name='__main__')"
    )
    here, there = socket.socketpair()
    with here, there:
        command = [sys.executable, "-c", code, str(there.fileno())]
        found = subprocess.run(command, pass_fds=[there.fileno()], capture_output=True, text=True, timeout=60)
    assert found.returncode == 1
    assert found.stderr.startswith("engine: ModuleNotFoundError: ")
    assert "llguidance" in found.stderr
    assert found.stderr.count("\n") == 1
