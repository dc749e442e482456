"""Mixed traffic for a while: nothing fails unasked, nothing leaks (row 30; `make bench-serve` has the long run)."""

import os
import random
import threading
import time
from pathlib import Path

from tests.serve.harness import serving

SECONDS = float(os.environ.get("PARAGONE_LOAD_SECONDS", "15"))
CLIENTS = 16


def resident(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_mixed_traffic(tiny_folder):
    # A small cache: its pages come into memory as they are used for the first time.
    with serving(f"tiny={tiny_folder}:bf16", "--kv-cache-mb", "8", model="tiny") as server:
        statuses: list[int] = []
        over = threading.Event()

        def client(number):
            rng = random.Random(number)
            while not over.is_set():
                kind = rng.random()
                if kind < 0.01:
                    found = server.post("/v1/completions", b" " * (11 << 20))
                    assert found.status == 413
                elif kind < 0.03:
                    found = server.chat(temperature=rng.choice((-1, 3)))
                    assert found.status == 400
                elif kind < 0.04:
                    with server.raw_socket() as connection:
                        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 9\r\n\r\n{")
                    continue
                elif kind < 0.5:
                    found = server.complete(
                        "x" * rng.randint(1, 300), max_tokens=rng.randint(1, 60), stream=kind < 0.3
                    )
                elif kind < 0.6:
                    form = {"choice": ["a", f"b{rng.randint(0, 9)}"]}
                    found = server.chat(structured_outputs=form)
                else:
                    found = server.chat(
                        "y" * rng.randint(1, 300), max_tokens=rng.randint(1, 60), stream=kind < 0.8
                    )
                statuses.append(found.status)

        threads = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        time.sleep(SECONDS * 0.4)
        pids = server.process.pid, server.engine_pid()
        before, files = [resident(pid) for pid in pids], [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]
        count = len(statuses)
        time.sleep(SECONDS * 0.6)
        after = [resident(pid) for pid in pids]
        over.set()
        for thread in threads:
            thread.join()
        server.idle()
        assert set(statuses) <= {200, 400, 413}
        assert len(statuses) > 200
        growth = [(b - a) / max(len(statuses) - count, 1) for a, b in zip(before, after, strict=True)]
        # In seconds the allocator's arenas still fill.
        most = 1 << 20 if SECONDS >= 300 else 64e6
        print(
            f"{len(statuses)} requests; bytes of memory more in ten thousand: {[round(g * 1e4) for g in growth]}"
        )
        assert max(growth) * 10_000 < most, growth
        assert [
            len(os.listdir(f"/proc/{pid}/fd")) <= f + CLIENTS for pid, f in zip(pids, files, strict=True)
        ] == [True, True]
        lag = server.get("/metrics").data.decode()
        late = float(lag.split('paragone_event_loop_lag_seconds_bucket{le="0.05"}')[1].split()[0])
        every = float(lag.split("paragone_event_loop_lag_seconds_count")[1].split()[0])
        assert late / every > 0.9
        assert server.machine()["engine_restarts"] == 0
