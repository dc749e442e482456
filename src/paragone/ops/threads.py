"""How many threads the kernels use, and where: PARAGONE_THREADS and PARAGONE_PIN, or what `set_threads` says,
or what is fastest here.

The last is measured once, in a tenth of a second, and remembered under Paragone's folder. Counting processors
is not enough: a container may have less of their time than it sees, and two that share a core multiply no
faster. Threads stay on a processor of their own (pinned) only where that is clearly faster: several processes
that do so get in each other's way.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from paragone import limits, paths
from paragone.errors import UsageError
from paragone.kernels import native
from paragone.ops import pages

BYTES = 24 << 20  # read in a measurement: more than nearest caches hold
ROUNDS = 3
BETTER = 0.97  # of the time: more threads must be faster than this to be worth it
MEASUREMENTS = 3  # before fewer threads than there are processors are taken for good
PINNED_BETTER = 0.9  # and a processor of their own
CORES = Path("/sys/devices/system/cpu")

_chosen: int | None = None
_pinned = False


def set_threads(count: int) -> None:
    """For PyTorch and the kernels, from now on. They are pinned only where PARAGONE_PIN asks for it."""
    global _chosen  # noqa: PLW0603 -- one process, one team
    if _chosen is None and native is not None:
        _pin(bool(_number("PARAGONE_PIN", 0, 1)))
    torch.set_num_threads(count)
    _chosen = count


@contextlib.contextmanager
def with_threads(count: int) -> Iterator[None]:
    """As `set_threads`, for a while: then PyTorch and the kernels have what each of them had, which need not
    be the same number."""
    global _chosen  # noqa: PLW0603
    before, of_torch = threads(), torch.get_num_threads()
    set_threads(count)
    try:
        yield
    finally:
        _chosen = before
        torch.set_num_threads(of_torch)


def threads() -> int:
    """How many threads the kernels use now."""
    global _chosen  # noqa: PLW0603
    if _chosen is None:
        count, pinned = _number("PARAGONE_THREADS", 1, limits.THREADS), _number("PARAGONE_PIN", 0, 1)
        if native is None:
            _chosen = count or torch.get_num_threads()
            return _chosen
        if count is None:
            count, measured = _measured()
            pinned = measured if pinned is None else pinned
        _pin(bool(pinned))
        _chosen = count
    return _chosen


class TorchOnOneThread:
    """A context in which PyTorch's operations stay on the caller's thread: after each that it spreads over
    threads of its own these spin for milliseconds, on the processors that the kernels want next."""

    __slots__ = ("before",)

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        if self.before != 1:
            torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        if self.before != 1:
            torch.set_num_threads(self.before)


def pinned() -> bool:
    """Whether each thread has a processor of its own."""
    return _pinned


def _pin(wanted: bool) -> None:
    global _pinned  # noqa: PLW0603
    native.pin(one_of_each_core(processors()) if wanted else [])
    _pinned = wanted


def processors() -> list[int]:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def one_of_each_core(numbers: Sequence[int]) -> list[int]:
    """Processors, those first that share a core with none before them."""
    seen: set[str] = set()
    first: list[int] = []
    rest: list[int] = []
    for number in numbers:
        core = str(number)
        with contextlib.suppress(OSError):
            core = (CORES / f"cpu{number}" / "topology" / "thread_siblings_list").read_text()
        (rest if core in seen else first).append(number)
        seen.add(core)
    return first + rest


def _number(name: str, least: int, most: int) -> int | None:
    """The number that an environment variable says."""
    value = os.environ.get(name)
    if not value:
        return None
    if not value.isdecimal() or not least <= int(value) <= most:
        raise UsageError(f"{name} is {value!r}, not a whole number from {least} to {most}")
    return int(value)


def _measured() -> tuple[int, bool]:
    """The fastest number, and whether pinned, from the file where it is remembered for such a machine, or
    measured. That fewer threads than processors are fastest is believed only after several starts have found
    it: what else ran at the first may have taken the processors."""
    count = len(processors())
    file, machine = paths.home() / "threads.json", f"{count} processors, {native.level}"
    found = 0, False, 0
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(file.read_text())
        if known["machine"] == machine and 1 <= int(known["threads"]) <= count:
            found = int(known["threads"]), bool(known["pinned"]), int(known["measured"])
    best, pinned, times = found
    if best < count and times < MEASUREMENTS:
        now = fastest(_candidates(count))
        if now > best:
            best, pinned = now, gains_by_pinning(now)
        kept = {"machine": machine, "threads": best, "pinned": pinned, "measured": times + 1}
        with contextlib.suppress(OSError):  # where it cannot be kept it is measured again
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(kept))
    return best, pinned


def _candidates(processors: int) -> list[int]:
    return sorted({1, *(1 << n for n in range(12) if 1 << n < processors), processors})


def fastest(counts: Iterable[int]) -> int:
    """Of these numbers, in rising order, the one that reads and multiplies fastest; fewer where it is
    equal."""
    memory = pages.empty((BYTES,), torch.uint8).fill_(1)
    best, least = 1, float("inf")
    for count in counts:
        native.read_rate(memory.data_ptr(), BYTES, count)  # the threads are started
        spent = min(_seconds(memory, count) for _ in range(ROUNDS))
        if spent < BETTER * least:
            best, least = count, spent
    return best


def gains_by_pinning(count: int) -> bool:
    """Whether so many threads are clearly faster on processors of their own; measured in turn."""
    if count == 1:
        return False
    memory = pages.empty((BYTES,), torch.uint8).fill_(1)
    spent: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for wanted, times in spent.items():
            _pin(wanted)
            times.append(_seconds(memory, count))
    _pin(False)
    return min(spent[True]) < PINNED_BETTER * min(spent[False])


def _seconds(memory: Tensor, count: int) -> float:
    """For reading it, and for 10^9 products."""
    reading = len(memory) / native.read_rate(memory.data_ptr(), len(memory), count)
    return float(reading + 1e9 / native.multiply_rate(4, count))
