"""`paragone serve` beside its own engine without HTTP, `vllm serve` (CPU) and llama.cpp's server; then ten
times too many clients, and an engine that is killed. Ends in one JSON line.

    python -m benchmarks.serve [--turns 5] [--seconds 10] [--write]

SmolLM2-135M: Paragone and llama.cpp on the same Q4_0 file, vLLM in bfloat16, two threads each. 1, 16 and 64
clients stream answers of 64 tokens in a closed loop (load_client.py, the same for all). All servers are
there, and one at a time is asked; ratios are made turn by turn, and their medians count.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks.cpu_kernels import files
from benchmarks.engine import PAGE, table, write_section
from benchmarks.foundation import exported
from benchmarks.peers import interpreter, llama_server
from benchmarks.turns import HERE, Engine
from paragone import limits
from paragone.engine.resources import describe_machine

CLIENTS = (1, 16, 64)
TOKENS = 64
OVERLOAD = 640
START_SECONDS = 300.0
SLOW = 9.0  # times as long
VLLM_TURNS = 2  # at most: it may need minutes for each
Measured = dict[str, Any]
Process = subprocess.Popen[bytes]


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def commands(port: int) -> dict[str, list[str]]:
    """How each server is started; the model is called smollm2 everywhere."""
    path, folder = str(files()["Q4_0"][0]), str(exported())
    paragone = [sys.executable, "-m", "paragone", "serve", f"smollm2={path}", "--port", str(port)]
    vllm = [
        *(str(interpreter("vllm").with_name("vllm")), "serve", folder, "--port", str(port)),
        *("--served-model-name", "smollm2", "--max-model-len", "2048", "--max-num-seqs", "64"),
        *("--dtype", "bfloat16"),
    ]
    llama = [
        *(str(llama_server()), "-m", path, "--port", str(port), "-np", "64", "-c", str(64 * 512)),
        *("-t", "2", "-tb", "2"),
    ]
    return {"Paragone": [*paragone, "--log-level", "warning"], "vLLM": vllm, "llama.cpp": llama}


@contextlib.contextmanager
def started(name: str, *more: str) -> Iterator[tuple[Process, int]]:
    """A server that answers."""
    port = free_port()
    command = [*commands(port)[name], *more]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # by itself it leaves one of two processors to its scheduler
    }
    with open(os.devnull, "wb") as nowhere:
        process = subprocess.Popen(
            command, stdout=nowhere, stderr=nowhere, env=environment, start_new_session=True
        )
    try:
        begin = time.monotonic()
        while not answers(port):
            if process.poll() is not None or time.monotonic() - begin > START_SECONDS:
                sys.exit(f"{name} did not start: {' '.join(command)}")
            time.sleep(0.1)
        yield process, port
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def answers(port: int) -> bool:
    body = json.dumps({"model": "smollm2", "prompt": "One", "max_tokens": 1}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
    )
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=30) as answer:
        return bool(answer.status == 200)
    return False


def clients_of(process: Process, port: int, clients: int, seconds: float, *more: str) -> list[str]:
    """The command that asks a server."""
    numbers = port, "smollm2", clients, seconds, TOKENS, process.pid
    return [sys.executable, str(HERE / "load_client.py"), *map(str, numbers), *more]


def load(process: Process, port: int, clients: int, seconds: float, *more: str) -> Measured:
    """`besides` is the share of all processors' time that the process that speaks HTTP and the clients took:
    the engine wants all of it, and keeps at most the rest."""
    command = clients_of(process, port, clients, seconds, *more)
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: Measured = json.loads(found.stdout.splitlines()[-1])
    return measured


def until_a_token(process: Process, port: int, clients: int, seconds: float) -> Measured:
    """Of a peer, which may be too slow to give a token within the time: then for longer."""
    measured = load(process, port, clients, seconds)
    return measured if measured["tokens_per_s"] else load(process, port, clients, SLOW * seconds)


def in_turns(turns: int, seconds: float) -> dict[int, list[Measured]]:
    """By the number of clients: what each server and the engine alone gave, turn by turn. The engine is
    measured just before and just after our server, for half the time each: a shared machine is not the same a
    minute later."""
    path, precision, _ = files()["Q4_0"]
    found: dict[int, list[Measured]] = {clients: [] for clients in CLIENTS}
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(Engine(sys.executable, "own_loop.py", path, precision, seconds, TOKENS))
        servers = {name: stack.enter_context(started(name)) for name in ("Paragone", "llama.cpp", "vLLM")}
        for clients, turn in product(CLIENTS, range(turns)):
            print(f"{clients} clients, turn {turn + 1} of {turns}", file=sys.stderr)
            before = engine.measure(str(clients))["rate"]
            measured: Measured = {}
            for name, (process, port) in servers.items():
                if name != "vLLM" or turn < VLLM_TURNS:
                    measured[name] = until_a_token(process, port, clients, seconds)
                if name == "Paragone":
                    after = engine.measure(str(clients))["rate"]
                    measured["engine"] = {"tokens_per_s": (before + after) / 2}
            print(json.dumps(measured), file=sys.stderr, flush=True)  # not lost where a later part fails
            found[clients].append(measured)
    return found


def overloaded(seconds: float) -> Measured:
    """What ten times as many clients as run see, of whom most are refused; their share of the tokens that 64
    alone get just before and just after, and the most that it could be."""
    print("ten times as many clients as run", file=sys.stderr)
    with started("Paragone") as (process, port):
        before = load(process, port, 64, seconds)
        crowd = load(process, port, OVERLOAD, 2 * seconds, "retry")
        after = load(process, port, 64, seconds)

    def mean(what: str) -> float:
        return float(before[what] + after[what]) / 2

    share = crowd["tokens_per_s"] / mean("tokens_per_s")
    return crowd | {"share": share, "most": (1 - crowd["besides"]) / (1 - mean("besides"))}


def recovery() -> Measured:
    """Seconds from the kill until an answer, and from the first start."""
    print("the engine is killed under load", file=sys.stderr)
    times, begin = [], time.monotonic()
    with started("Paragone") as (process, port):
        start = time.monotonic() - begin
        for _ in range(3):
            client = subprocess.Popen(
                clients_of(process, port, 16, 6), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            time.sleep(3)
            os.kill(engine_of(process.pid), signal.SIGKILL)
            begin = time.monotonic()
            time.sleep(0.05)
            while not answers(port):
                time.sleep(0.01)
            times.append(time.monotonic() - begin)
            client.wait()
            time.sleep(21)  # three ends within a minute are the most
    return {"recovery_s": median(times), "start_s": start}


def engine_of(pid: int) -> int:
    """The only process that the server's fork server has forked."""

    def children(parent: int) -> list[int]:
        return list(map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()))

    forks = (c for c in children(pid) if b"fork_server" in Path(f"/proc/{c}/cmdline").read_bytes())
    return children(next(forks))[0]


@click.command()
@click.option("--turns", default=5)
@click.option("--seconds", default=10.0)
@click.option("--write", is_flag=True)
def main(turns: int, seconds: float, write: bool) -> None:
    found = in_turns(turns, seconds)
    crowd, back = overloaded(seconds), recovery()

    def ratio(clients: int, peer: str) -> float | None:
        """None where the peer gave no token within the time."""
        seen = [m for m in found[clients] if peer in m and m[peer]["tokens_per_s"]]
        ratios = [float(m["Paragone"]["tokens_per_s"] / m[peer]["tokens_per_s"]) for m in seen]
        return round(median(ratios), 2) if ratios else None

    def typical(name: str, clients: int, what: str, scale: float = 1.0) -> str:
        """A dash where a server was too slow to give one token within the time."""
        seen = [float(m[name][what]) for m in found[clients] if name in m and m[name][what] is not None]
        return f"{scale * median(seen):.0f}" if seen else "–"

    names = {
        "engine": "The engine without HTTP",
        "Paragone": "Paragone",
        "llama.cpp": "llama.cpp",
        "vLLM": "vLLM",
    }
    rows = [[text, *(typical(name, n, "tokens_per_s") for n in CLIENTS)] for name, text in names.items()]
    waits = [
        [
            name, *(typical(name, n, what, 1e3) for n in (16, 64)
                    for what in ("ttft_p50_s", "ttft_p99_s", "between_p50_s", "between_p99_s")),
        ]
        for name in names if name != "engine"
    ]  # fmt: skip
    processors = len(os.sched_getaffinity(0))
    besides = {n: median(m["Paragone"]["besides"] for m in found[n]) for n in CLIENTS}
    shares = [
        ["of the engine's tokens", *(f"{ratio(n, 'engine'):.0%}" for n in CLIENTS)],
        ["at most", *(f"{1 - besides[n]:.0%}" for n in CLIENTS)],
        ["where threads wait", *(f"{1 - processors * besides[n]:.0%}" for n in CLIENTS)],
    ]
    refusal = 1e3 * (crowd["refusal_p99_s"] or 0.0)
    here = describe_machine()
    lines = [
        f"SmolLM2-135M, Paragone and llama.cpp on the same Q4_0 file, vLLM in bfloat16; {here['cpu']},",
        f"{here['cores']} cores, kernels {here['kernels']}; `make bench-serve`,",
        f"medians of {turns} turns of {seconds:g} s ({min(turns, VLLM_TURNS)} of vLLM). Clients stream",
        f"answers of {TOKENS} tokens, one after the other, on the same processors.",
        "",
        *table(["output tokens/s", *(f"{n} client{'s' if n > 1 else ''}" for n in CLIENTS)], rows),
        "",
        "What is left of the engine's tokens, and the most that could be: the engine computes on all",
        "processors, and the process that speaks HTTP and the clients, who are on the same ones, take the",
        "rest of their time. Where the engine's threads wait for each other, what is taken from one is taken",
        "from all: the last line. The engine alone is measured just before and just after, for half the time",
        "each.",
        "",
        *table(["", *(f"{n} client{'s' if n > 1 else ''}" for n in CLIENTS)], shares),
        "",
        "Milliseconds to the first token, and between events, of which Paragone's have several tokens where",
        f"these follow each other within {1e3 * limits.GATHER_SECONDS:.0f} ms, or "
        f"{1e3 * limits.GATHER_SECONDS_A_STREAM:.0f} for each of many streams, "
        f"{1e3 * limits.GATHER_SECONDS_AT_MOST:.0f} at most:",
        "",
        *table(["", *(f"{what}, {n} clients" for n in (16, 64) for what in
                      ("first p50", "first p99", "between p50", "between p99"))], waits),
        "",
        f"{OVERLOAD} clients where 64 run and 256 may wait: {crowd['share']:.0%} of the tokens that 64",
        f"clients alone get, of at most {crowd['most']:.0%}, refusals within {refusal:.0f} ms (p99),",
        f"statuses {crowd['statuses']}.",
        "",
        f"The engine's process killed under load: an answer again after {back['recovery_s']:.2f} s; after",
        f"the server's start the first came after {back['start_s']:.2f} s.",
    ]  # fmt: skip
    print("\n".join(lines))
    if write:
        write_section(PAGE, f"The server ({here['kernels']})", lines)
    line: Measured = {f"http_share_{n}": ratio(n, "engine") for n in CLIENTS}
    line |= {f"seq{n}_vs_vllm_serve": ratio(n, "vLLM") for n in (16, 64)}
    line |= {f"seq{n}_vs_llama_server": ratio(n, "llama.cpp") for n in (16, 64)}
    line |= {
        "overload_refusal_p99_ms": round(refusal, 1),
        "overload_goodput_share": round(crowd["share"], 3),
        "recovery_s": round(back["recovery_s"], 2),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
