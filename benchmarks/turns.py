"""Engines that are measured in turn. Each is a process that has its model ready, waits without computing, and
measures once what a line asks for: on a machine that others use as well, one minute's figures do not compare
with the next minute's, those of neighbouring seconds do.

Runs in the peers' environments, too: it needs nothing but Python.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).parent
QUIET = 1.5  # seconds: vLLM's worker spins for one after its work, on a processor that the next one measures
STEPS = {1: 128, 16: 48, 64: 24}  # of decoding, by sequences
PROMPTS = {512: 4, 4096: 1}  # one after the other, by length
TIMES = {1: 2, 16: 3, 64: 3}  # of which the best counts, by equal requests at once
Measured = dict[str, float]
Turn = dict[str, Measured]  # by the engine's name
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE.parent)}


class Engine:
    """A script of this folder in a Python of its own, which ends in `answer`."""

    def __init__(self, python: Path | str, script: str, *arguments: object) -> None:
        self.name = f"{script} {' '.join(map(str, arguments))}"
        command = [str(python), str(HERE / script), *map(str, arguments)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=ENVIRONMENT,
        )

    def measure(self, figure: str) -> Measured:
        assert self.process.stdin
        assert self.process.stdout
        time.sleep(QUIET)
        try:
            self.process.stdin.write(figure + "\n")
            self.process.stdin.flush()
            found: Measured = json.loads(self.process.stdout.readline())
        except (BrokenPipeError, ValueError):
            sys.exit(f"{self.name} failed at {figure}")
        return found

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def in_turn(engines: dict[str, Engine], figure: str, turns: int) -> list[Turn]:
    """The first turn warms up and does not count."""
    found = [{name: engine.measure(figure) for name, engine in engines.items()} for _ in range(1 + turns)]
    return found[1:]


def answer(measure: Callable[[str, int], Measured]) -> None:
    """Measures what each line of standard input names (a kind and a number, decode16), until its end."""
    for line in sys.stdin:
        figure = line.strip()
        kind = figure.rstrip("0123456789")
        print(json.dumps(measure(kind, int(figure[len(kind) :] or 0))), flush=True)
