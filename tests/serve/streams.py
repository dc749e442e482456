"""Many answers that come at once, each read by a thread of its own to whatever end it has."""

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

from tests.serve.harness import Server

CUT = -1
Found = list[tuple[int, bytes, float]]  # status, text and moment of each end


def reader(server: Server, body: dict[str, Any], found: Found) -> None:
    """Reads a stream to its end, whatever that is. The status is 0 where nobody listened, and CUT where an answer
    broke off."""
    with contextlib.closing(server.connect()) as connection:
        data, failed = b"", 0
        try:
            connection.request(
                "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            failed = CUT
            while piece := answer.read1(1 << 16):
                data += piece
            found.append((answer.status, data, time.monotonic()))
        except (OSError, http.client.HTTPException) as err:
            found.append((failed, data + repr(err).encode(), time.monotonic()))


def streams(
    server: Server, count: int, tokens: int = 480, **fields: Any
) -> tuple[list[threading.Thread], Found]:
    """So many requests on their way, and the list that their ends come to."""
    found: Found = []
    body = {"model": "tiny", "prompt": "Hello", "max_tokens": tokens, "stream": True, "ignore_eos": True}
    threads = [threading.Thread(target=reader, args=(server, body | fields, found)) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, found


@contextlib.contextmanager
def streams_held(
    server: Server, count: int, n: int = 1, tokens: int = 480
) -> Iterator[tuple[list[threading.Thread], Found]]:
    """The same of n answers each, all of them inside. The engine stands still meanwhile, or, on a fast machine, they
    might be over before anything else is."""
    with server.engine_held():
        made = streams(server, count, tokens, n=n)
        server.wait_until_inside(count * n)
        yield made
