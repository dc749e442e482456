"""Heads, bodies and connections that would keep a server busy (row 11), and those that go away (row 20)."""

import contextlib
import json
import random
import re
import socket
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import pytest

from paragone import limits

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def exchange(server, data, *, pause=0.0, wait=15.0):
    """What comes back for these bytes, until the server closes or `wait` is over."""
    with server.raw_socket() as connection:
        connection.settimeout(wait)
        with contextlib.suppress(OSError):
            for piece in data if isinstance(data, list) else [data]:
                connection.sendall(piece)
                time.sleep(pause)
        answer = b""
        with contextlib.suppress(OSError):
            while not complete(answer) and (piece := connection.recv(1 << 16)):
                answer += piece
        return answer


def complete(answer):
    head, end, body = answer.partition(b"\r\n\r\n")
    size = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return bool(end) and size is not None and len(body) >= int(size[1])


def status_of(answer):
    return int(answer.split()[1]) if answer else 0


GET = b"GET /version HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
LONG = b"a" * 70_000
REFUSED = {
    431: [
        GET + b"X: " + LONG, GET + b"X: " + LONG + b"\r\n\r\n", GET + LONG + b": x\r\n\r\n",
        GET + b"".join(b"X%d: y\r\n" % i for i in range(9000)) + b"\r\n",
        GET + b"".join(b"X: %s\r\n" % (b"y" * 1000) for _ in range(70)) + b"\r\n",
        b"GET /" + LONG + b" HTTP/1.1\r\n\r\n", b"GET /?" + LONG + b" HTTP/1.1\r\n\r\n",
        GET + b"Cookie: " + b"a=b; " * 14_000 + b"\r\n\r\n",
        GET + b"Authorization: Bearer " + LONG + b"\r\n\r\n",
        HEAD + b"Content-Length: 2\r\nX: " + LONG + b"\r\n\r\n{}",
    ],
    400: [
        LONG, LONG + b" / HTTP/1.1\r\n\r\n", b"nonsense\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/9.9\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n", b"GET / FTP/1.1\r\n\r\n", b"GET / HTTP/1.1x\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"G@T / HTTP/1.1\r\n\r\n", b"\x00\x01\x02\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\nNo colon\r\n\r\n", b"GET / HTTP/1.1\r\n: no name\r\n\r\n",
        b"GET / HTTP/1.1\r\nA b: c\r\n\r\n", b"GET / HTTP/1.1\r\nA\x00: c\r\n\r\n", b"GET / HTTP/1.1\r\nA: b\x00c\r\n\r\n",
        b"GET / HTTP/1.1\r\nA : b\r\n\r\n", b"GET / HTTP/1.1\r\nA: b\rC: d\r\n\r\n",
        HEAD + b"Content-Length: -5\r\n\r\n", HEAD + b"Content-Length: abc\r\n\r\n", HEAD + b"Content-Length: 0x5\r\n\r\n",
        HEAD + b"Content-Length: +5\r\n\r\n", HEAD + b"Content-Length: 5 5\r\n\r\n", HEAD + b"Content-Length: 5, 6\r\n\r\n",
        HEAD + b"Content-Length: \r\n\r\n", HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        HEAD + b"Content-Length: 99999999999999999999999999\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n", HEAD + b"Transfer-Encoding: xchunked\r\n\r\n",
        CHUNKED + b"zz\r\n", CHUNKED + b"-1\r\n", CHUNKED + b"\r\n", CHUNKED + b"fffffffffffffffff\r\n",
        CHUNKED + b"5\r\nabcdefgh\r\n0\r\n\r\n", CHUNKED + b"0x5\r\nabcde\r\n0\r\n\r\n",
        HEAD + b"Content-Length: 2\r\n\r\n\xff\xfe", CHUNKED + b"0\r\n\r\n",
    ],
    413: [
        HEAD + b"Content-Length: 99999999999\r\n\r\n", HEAD + b"Content-Length: %d\r\n\r\n" % (limits.BODY_BYTES + 1),
        HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (limits.BODY_BYTES + 1),
        CHUNKED + b"b00000\r\n" + b" " * (11 << 20), CHUNKED + b"100000\r\n" + b" " * (1 << 20) + b"\r\n" + b"a00001\r\n" + b" " * (10 << 20),
    ],
    415: [
        HEAD + b"Connection: close\r\nContent-Encoding: %s\r\nContent-Length: 5\r\n\r\nabcde" % name
        for name in (b"gzip", b"br", b"deflate", b"zstd", b"gzip, gzip", b"x")
    ],
}  # fmt: skip
assert sum(map(len, REFUSED.values())) >= 60


@pytest.mark.parametrize("status", REFUSED)
def test_what_is_no_request(server, status):
    for data in REFUSED[status]:
        answer = exchange(server, data)
        assert status_of(answer) == status, (data[:200], answer[:300])
        body = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert set(body["error"]) == {"message", "type", "param", "code"}


def test_a_body_is_counted_while_it_comes(server):
    """Chunked: nobody said how long it would be."""
    piece = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    begin = time.monotonic()
    answer = exchange(server, [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[piece] * 12])
    assert status_of(answer) == 413
    assert time.monotonic() - begin < 10


def test_the_largest_body_is_taken(server):
    text = json.dumps({"model": "tiny", "prompt": "x"}).encode()
    body = text[:-1] + b" " * (limits.BODY_BYTES - len(text)) + b"}"
    assert server.post("/v1/completions", body).status == 200
    assert server.post("/v1/completions", body + b" ").status == 413


def drip(server, begin, wait):
    """Sends `begin`, then a byte a second; the status of what comes back, and when."""
    started = time.monotonic()
    with server.raw_socket() as connection:
        connection.settimeout(1)
        connection.sendall(begin)
        while time.monotonic() - started < wait:
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(1 << 16)
                return status_of(answer), time.monotonic() - started
            connection.sendall(b"a")
    return 0, wait


def test_requests_that_never_end(server):
    """A head has ten seconds and a body thirty, however a client spends them; all at once here."""
    heads = [b"GET /", b"\r\nPOST /v1", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: loc", HEAD]
    bodies = [
        HEAD + b"Content-Length: 500\r\n\r\n", HEAD + b'Content-Length: 500\r\n\r\n{"model": "',
        CHUNKED + b"500\r\n",
    ]  # fmt: skip
    with ThreadPoolExecutor(len(heads + bodies)) as pool:
        found = list(pool.map(lambda begin: drip(server, begin, 50), heads + bodies))
    for begin, (status, seconds) in zip(heads + bodies, found, strict=True):
        limit = limits.HEADER_SECONDS if begin in heads else limits.BODY_SECONDS
        assert status == 408, (begin, status)
        assert limit - 1 < seconds < limit + 10, begin


def test_slow_clients_do_not_keep_others_waiting(server):
    """Two hundred heads that never end, and one client that is in earnest."""

    def first_token():
        begin = time.perf_counter()
        assert server.complete("Hello", max_tokens=1, temperature=0).status == 200
        return time.perf_counter() - begin

    before = statistics.median(first_token() for _ in range(40))
    slow = [server.raw_socket() for _ in range(200)]
    try:
        for connection in slow:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX: ")
        beside = statistics.median(first_token() for _ in range(40))
    finally:
        for connection in slow:
            connection.close()
    assert beside < 4 * before + 0.1, (before, beside)  # held up they would be 10 s
    assert server.complete().status == 200


def streamed(server, **fields):
    """A connection on which an answer has been asked for."""
    body = {"model": "tiny", "prompt": "Hello", "stream": True, "ignore_eos": True} | fields
    data = json.dumps(body).encode()
    connection = server.raw_socket()
    connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data)
    return connection


def test_clients_that_leave(server):
    """Three hundred, at any moment: in the head, in the body, while waiting, in the answer, after it."""
    random.seed(5)
    before = server.complete("Hello", temperature=0).json["choices"]
    pid = server.engine_pid()

    def leave(count):
        for _ in range(count):
            whole = random.random() < 0.5
            fields = {
                "max_tokens": random.randint(1, 480),
                "n": random.choice((1, 1, 3)),
                "stream": not whole,
            }
            if random.random() < 0.3:  # half a request
                with server.raw_socket() as connection:
                    data = HEAD + b'Content-Length: 60\r\n\r\n{"model": "tiny", "prompt": "Hello"'
                    connection.sendall(data[: random.randint(1, len(data))])
                continue
            with contextlib.closing(streamed(server, **fields)) as connection:
                time.sleep(random.random() * 0.05)
                if random.random() < 0.5 and not whole:
                    with contextlib.suppress(OSError):
                        connection.settimeout(0.05)
                        connection.recv(random.randint(1, 5000))
                if random.random() < 0.3:  # by a reset, not by an end
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    threads = [threading.Thread(target=leave, args=(75,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.idle(5)
    assert server.engine_pid() == pid
    assert server.complete("Hello", temperature=0).json["choices"] == before
    assert any(line.get("status") == 499 for line in server.events("request"))


def test_an_answer_nobody_reads_is_ended_within_a_moment(server):
    """From the client's leaving to free blocks: within 250 ms (row 20), and sooner than the answer's own end."""
    answers = {"max_tokens": 900, "n": 16}
    begin = time.monotonic()
    server.complete(ignore_eos=True, **answers)
    whole, took = time.monotonic() - begin, []
    for _ in range(10):
        connection = streamed(server, **answers)
        assert connection.recv(100)
        with server.engine_held():  # which is to be told, not to come to the end meanwhile
            server.wait_until_inside(16)
            connection.close()
            begin = time.monotonic()
            server.wait_until_inside(0)
        server.idle(5)
        took.append(time.monotonic() - begin)
    assert median(took) < min(0.25, 0.7 * whole), (took, whole)


def test_two_hundred_long_answers_that_nobody_waits_for(server):
    connections = [streamed(server, max_tokens=500) for _ in range(200)]
    time.sleep(0.5)
    for connection in connections:
        connection.close()
    begin = time.monotonic()
    assert server.complete().status == 200
    assert time.monotonic() - begin < 5
    server.idle()


def asked(path=b"/v1/completions", more=b"", **fields):
    """The bytes of a request."""
    data = json.dumps(
        {"model": "tiny", "prompt": "Hello", "temperature": 0, "max_tokens": 4} | fields
    ).encode()
    return HEAD.replace(b"/v1/completions", path) + more + b"Content-Length: %d\r\n\r\n" % len(data) + data


OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"


def test_an_offer_of_another_protocol_is_not_taken_up(server):
    """Java's client makes it with every request; its body counts, however the bytes are cut."""
    data = asked(more=OFFER)
    at = data.index(b"Upgrade: h2c")
    cuts = [[data[:cut], data[cut:]] for cut in (at - 1, at, at + 1, at + 4, at + 7, at + 8, at + 12)]
    for pieces in ([data], [asked(more=OFFER.replace(b"Upgrade:", b"UPGRADE:"))], *cuts):
        assert status_of(exchange(server, pieces, pause=0.02)) == 200
    with server.raw_socket() as connection:  # and the next request of a connection
        for _ in range(2):
            connection.sendall(data)
            answer = b""
            while not complete(answer):
                answer += connection.recv(1 << 16)
            assert status_of(answer) == 200
    text = asked(prompt="a\nupgrade: b", echo=True)  # in a body it is text
    assert b"a\\nupgrade: b" in exchange(server, text)


def test_a_request_behind_another_does_not_hide_that_the_client_leaves(server):
    second = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with server.raw_socket() as connection:  # who stays gets the first answer, and then the connection's end
        connection.sendall(asked() + second * 3)
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
    assert answer.count(b"HTTP/1.1 200 OK") == 1
    assert complete(answer)
    with server.engine_held():
        connection = server.raw_socket()
        connection.sendall(asked(max_tokens=480, n=4, ignore_eos=True) + second)
        server.wait_until_inside(4)
        connection.close()
        begin = time.monotonic()
        server.wait_until_inside(0)
        assert time.monotonic() - begin < 1.5
    server.idle(5)


def test_events_survive_any_cut(server):
    """A client may get the stream in pieces of any size."""
    data = server.complete("Hello", stream=True, max_tokens=64, temperature=1, seed=1).data
    for size in (1, 2, 3, 7, 64):
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        held, events = b"", []
        for piece in pieces:
            held += piece
            *whole, held = held.split(b"\n\n")
            events += whole
        assert held == b""
        assert events[-1] == b"data: [DONE]"
        assert all(json.loads(event[6:]) for event in events[:-1])


def test_one_port_and_no_other(server):
    """Of both processes."""

    def listening(pid):
        import os

        inodes = set()
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
        tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
        rows = [line.split() for table in tables for line in table]
        return [row[1] for row in rows if row[3] == "0A" and row[9] in inodes]

    assert len(listening(server.process.pid)) == 1
    assert listening(server.engine_pid()) == []
