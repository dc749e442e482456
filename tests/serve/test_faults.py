"""Too much work, signals, models that come and go (rows 21, 22, 24)."""

import contextlib
import json
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serve.harness import SMALL, events_of, serving, serving_tiny
from tests.serve.streams import streams, streams_held


def test_ten_times_as_many_as_fit(own):
    """Everybody gets an answer: the words, or a refusal that says when to come back."""
    server = own("--max-num-seqs", "8", "--max-queue", "8")

    def ask(_):
        found = server.complete("Hello", max_tokens=32, ignore_eos=True, temperature=0)
        if found.status != 200:
            assert int(found.headers["retry-after"]) >= 1
            assert found.error["code"] == "overloaded"
        return found.status

    with ThreadPoolExecutor(160) as pool:
        statuses = list(pool.map(ask, range(2000)))
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 16
    assert server.idle()["engine_restarts"] == 0
    assert server.complete(max_tokens=1).status == 200


def test_the_official_client_comes_through(quick):
    """It tries again by itself where it is refused."""
    import openai

    server = quick("--max-num-seqs", "1", "--max-queue", "0")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=20)
    body = {"model": "tiny", "prompt": "x", "max_tokens": 8}
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: client.completions.create(**body).usage.total_tokens, range(8)))
    assert len(done) == 8


def ended_well(status, data):
    """With its end, with an error in it, or with a refusal."""
    if status == 200:
        return data.endswith(b"data: [DONE]\n\n") or "error" in events_of(data)[-1]
    return status in (500, 503) and "error" in json.loads(data)


def test_told_to_stop(quick):
    """Anyone who is asked after it hears that the server goes, and when to come back."""
    server = quick("--drain", "20")
    with streams_held(server, 20) as (threads, found):
        server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        while server.get("/ready").status != 503:
            assert time.monotonic() < deadline
        health, asked = server.get("/health"), server.complete()
    assert (health.status, asked.status) == (200, 503)
    assert asked.headers["retry-after"]
    assert asked.headers["connection"] == "close"
    for thread in threads:
        thread.join(30)
    assert server.process.wait(25) == 0
    assert all(status == 200 and data.endswith(b"data: [DONE]\n\n") for status, data, _ in found)
    assert len(found) == 20


@pytest.mark.parametrize("seed", range(10))
def test_ended_at_any_moment(quick, tiny_folder, seed):
    """Five servers, so fifty in all: the engine of one is killed three times under load, each is told to stop
    while twenty stream. Whoever waits hears of it at once, and the next request finds a new engine."""
    rng = random.Random(seed)
    server = quick("--drain", "20")
    want = server.complete("Hello", temperature=0).json["choices"]
    for kill in range(3):
        threads, found = streams(server, 8)
        time.sleep(rng.random() * 0.3)
        os.kill(server.engine_pid(), rng.choice((signal.SIGKILL, signal.SIGSEGV)))
        killed = time.monotonic()
        for thread in threads:
            thread.join(10)
        for status, data, at in found:
            assert ended_well(status, data), data[-300:]
            assert at - killed < 2.0 or data.endswith(b"[DONE]\n\n")
        server.wait_until_ready(30)
        assert server.complete("Hello", temperature=0).json["choices"] == want
        assert server.machine()["engine_restarts"] == kill + 1
    servers = [serving_tiny(tiny_folder, "--drain", "20") for _ in range(4)]
    servers.append(contextlib.nullcontext(server))
    numbers = [*rng.choices(STOPS, k=4), signal.SIGTERM]
    with ThreadPoolExecutor(2) as pool:  # two at once: a start is mostly waiting
        stopped = [
            pool.submit(told_to_stop_at, opened, rng.random() * 0.4, number)
            for opened, number in zip(servers, numbers, strict=True)
        ]
        for one in stopped:
            one.result()


STOPS = signal.SIGTERM, signal.SIGINT


def told_to_stop_at(opened, moment, number):
    """Twenty streams and, after so many seconds, a signal: each of them ends as it should."""
    with opened as server:
        threads, found = streams(server, 20, tokens=240)
        time.sleep(moment)
        server.process.send_signal(number)
        assert server.process.wait(25) == 0
        for thread in threads:
            thread.join(10)
    assert len(found) == 20
    for status, data, _ in found:
        assert ended_well(status, data) or status == 0, data[-300:]  # came when nobody listened any more


def test_not_done_in_time(quick):
    """What is not finished when the time is over is told so; the exit code says that somebody was cut off."""
    server = quick("--drain", "0.2", "--max-num-seqs", "2")
    with streams_held(server, 20, n=12) as (threads, found):  # more than any machine gives in that time
        pass
    assert server.stop() == 1
    for thread in threads:
        thread.join(10)
    assert all(ended_well(status, data) for status, data, _ in found), [d[-200:] for _, d, _ in found]
    assert any(b"server_stopped" in data for _, data, _ in found)


def test_told_twice(quick):
    server = quick("--drain", "60", "--max-num-seqs", "2")
    with streams_held(server, 20, n=12) as (threads, found):
        pass
    server.process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    begin = time.monotonic()
    assert server.stop(signal.SIGINT) == 1
    assert time.monotonic() - begin < 5
    for thread in threads:
        thread.join(10)
    assert len(found) == 20


def test_a_stream_whose_time_is_over(quick):
    """What has come stays, an error says why it ends, and it does not look complete."""
    server = quick("--max-num-seqs", "2")
    many = ["A story: "] * 16  # with 16 answers each: more than any machine gives in that time
    found = server.complete(many, stream=True, n=16, max_tokens=1000, ignore_eos=True, timeout=1)
    assert found.status == 200
    assert found.events[0]["choices"]
    assert found.events[-1]["error"]["code"] == "timeout"
    assert b"[DONE]" not in found.data
    server.idle()


def test_models_make_room_for_each_other(tiny_folder, other_folder):
    names = ("one", tiny_folder), ("two", other_folder), ("three", tiny_folder)
    models = [f"{name}={folder}:bf16" for name, folder in names]
    with serving(*models, "--kv-cache-mb", "30", "--memory-mb", "70", model="one") as server:
        for name, _ in (*names, *names):
            assert server.complete(model=name).status == 200
            loaded = [m["model"] for m in server.machine()["models"] if m["loaded"]]
            assert name in loaded
            assert len(loaded) <= 2
        assert server.events("model_unloaded")


def test_a_model_that_cannot_be_loaded(tiny_folder, tmp_path):
    import shutil

    shutil.copytree(tiny_folder, tmp_path / "broken")
    weights = tmp_path / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with serving(
        f"tiny={tiny_folder}:bf16", f"broken={tmp_path / 'broken'}:bf16", *SMALL, model="tiny"
    ) as server:
        found = server.complete(model="broken")
        assert found.status in (500, 503)
        assert str(tmp_path) not in found.data.decode()
        assert server.complete().status == 200


def test_an_address_that_is_taken(server, tiny_folder, capfd):
    from paragone.cli.main import run

    assert run(["serve", "--port", str(server.port), f"tiny={tiny_folder}"]) == 69
    assert "in use" in capfd.readouterr().err


def test_what_is_missing_is_named(monkeypatch, capfd):
    """Without the extra the command says what to install."""
    import sys

    from paragone.cli.main import run

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "paragone.serve.server", raising=False)
    assert run(["serve", "tiny"]) == 78
    assert "uvicorn is not installed: pip install 'paragone[serve]'" in capfd.readouterr().err
    assert run(["serve", "--print-limits"]) == 0  # which needs nothing of it


def test_limits_are_printed(capfd):
    from paragone import limits
    from paragone.cli.main import run

    assert run(["serve", "--print-limits"]) == 0
    shown = capfd.readouterr().out
    for name in ("BODY_BYTES", "QUEUE", "GRAMMAR_SECONDS"):
        assert f"{getattr(limits, name):,}" in next(
            line for line in shown.splitlines() if line.startswith(name)
        )


def test_tls(tiny_folder, home):
    with serving(f"tiny={tiny_folder}:bf16", "--tls-self-signed", *SMALL, model="tiny", home=home) as server:
        assert server.scheme == "https"
        assert server.chat(stream=True).data.endswith(b"data: [DONE]\n\n")
        assert oct((home / "tls" / "self-signed.key").stat().st_mode & 0o777) == "0o600"
        import ssl
        import urllib.request

        context = ssl.create_default_context(cafile=str(home / "tls" / "self-signed.pem"))
        assert urllib.request.urlopen(f"{server.url}/health", context=context).status == 200
        with server.raw_socket() as connection:  # no TLS
            connection.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            assert b"200" not in connection.recv(100)
    from paragone.cli.main import run

    (home / "x.pem").write_text("no certificate")
    assert (
        run(
            [
                "serve",
                "--tls-cert",
                str(home / "x.pem"),
                "--tls-key",
                str(home / "x.pem"),
                f"tiny={tiny_folder}",
            ]
        )
        == 78
    )
    assert run(["serve", "--tls-cert", str(home / "x.pem"), f"tiny={tiny_folder}"]) == 2
