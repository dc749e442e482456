"""How many threads the kernels use: PARAGONE_THREADS, or what `set_threads` says, or what is fastest here.

The last is measured once, in a tenth of a second, and remembered under Paragone's folder. Counting processors
is not enough: a container may have less of their time than it sees, and two that share a core multiply no
faster.
"""

import contextlib
import json
import os
from collections.abc import Iterable

import torch

from paragone import limits, paths
from paragone.errors import UsageError
from paragone.kernels import native

BYTES = 24 << 20  # read in a measurement: more than nearest caches hold
ROUNDS = 3
BETTER = 0.97  # of the time: more threads must be faster than this to be worth it

_chosen: int | None = None


def set_threads(count: int) -> None:
    """For PyTorch and the kernels, from now on."""
    global _chosen  # noqa: PLW0603 -- one process, one team
    torch.set_num_threads(count)
    _chosen = count


def threads() -> int:
    """How many threads the kernels use now."""
    global _chosen  # noqa: PLW0603
    if _chosen is None:
        _chosen = _from_environment() or (torch.get_num_threads() if native is None else _measured())
    return _chosen


def _from_environment() -> int | None:
    value = os.environ.get("PARAGONE_THREADS")
    if not value:
        return None
    if not value.isdecimal() or not 1 <= int(value) <= limits.THREADS:
        raise UsageError(f"PARAGONE_THREADS is {value!r}, not a whole number from 1 to {limits.THREADS}")
    return int(value)


def _measured() -> int:
    """The fastest number, from the file where it is remembered for such a machine, or measured."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    file, machine = paths.home() / "threads.json", f"{processors} processors, {native.level}"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(file.read_text())
        if known["machine"] == machine and 1 <= int(known["threads"]) <= processors:
            return int(known["threads"])
    count = fastest(_candidates(processors))
    with contextlib.suppress(OSError):  # where it cannot be kept it is measured again
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"machine": machine, "threads": count}))
    return count


def _candidates(processors: int) -> list[int]:
    return sorted({1, *(1 << n for n in range(12) if 1 << n < processors), processors})


def fastest(counts: Iterable[int]) -> int:
    """Of these numbers, in rising order, the one that reads and multiplies fastest; fewer where it is
    equal."""
    memory = torch.ones(BYTES, dtype=torch.uint8)
    best, least = 1, float("inf")
    for count in counts:
        native.read_rate(memory.data_ptr(), BYTES, count)  # the threads are started
        times = []
        for _ in range(ROUNDS):
            reading = BYTES / native.read_rate(memory.data_ptr(), BYTES, count)
            times.append(reading + 1e9 / native.multiply_rate(True, count))
        if min(times) < BETTER * least:
            best, least = count, min(times)
    return best
