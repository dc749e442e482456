"""How many threads the kernels take."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from paragone import paths
from paragone.errors import UsageError
from paragone.ops import threads as module
from tests.ops.plans import FORMATS, inputs, linear, native, random_packed, run


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("PARAGONE_HOME", str(tmp_path))
    monkeypatch.delenv("PARAGONE_THREADS", raising=False)
    monkeypatch.setattr(module, "_chosen", None)
    return monkeypatch


def test_it_is_measured_once_and_remembered(fresh):
    fresh.setattr(module, "fastest", lambda counts: counts[-1])
    count, pinned = module.threads(), module.pinned()
    kept = json.loads((paths.home() / "threads.json").read_text())
    assert (kept["threads"], kept["pinned"]) == (count, pinned)
    fresh.setattr(module, "_chosen", None)
    fresh.setattr(module, "fastest", None)  # nothing is measured again
    assert (module.threads(), module.pinned()) == (count, pinned)


def test_fewer_threads_are_believed_only_after_several_starts(fresh):
    """What else runs at the first start may have taken the processors."""
    fresh.setattr(module, "processors", lambda: [0, 1, 2, 3])
    answers = iter([1, 2, 1])
    fresh.setattr(module, "fastest", lambda counts: next(answers))
    fresh.setattr(module, "gains_by_pinning", lambda count: False)
    fresh.setattr(module, "_pin", lambda wanted: None)
    found = []
    for _ in range(5):
        fresh.setattr(module, "_chosen", None)
        found.append(module.threads())
    assert found == [1, 2, 2, 2, 2]


@pytest.mark.parametrize("kept", ["", "[]", "{", '{"machine": "another", "threads": 7}', '{"threads": "x"}'])
def test_what_cannot_be_used_is_measured_anew(fresh, kept):
    (paths.home() / "threads.json").write_text(kept)
    fresh.setattr(module, "fastest", lambda counts: counts[-1])
    assert module.threads() == len(module.processors())


def test_the_environment_and_the_caller_come_first(fresh):
    fresh.setenv("PARAGONE_THREADS", "3")
    assert module.threads() == 3
    before = torch.get_num_threads()
    try:
        module.set_threads(1)
        assert (module.threads(), torch.get_num_threads()) == (1, 1)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("value", ["0", "-1", "two", "99999999"])
def test_other_values_are_refused_by_name(fresh, value):
    fresh.setenv("PARAGONE_THREADS", value)
    with pytest.raises(UsageError, match="PARAGONE_THREADS"):
        module.threads()


def places():
    """Where each thread of this process may run."""
    return [os.sched_getaffinity(int(task.name)) for task in Path("/proc/self/task").iterdir()]


@pytest.mark.parametrize("wanted", ["0", "1"])
def test_a_number_that_is_given_leaves_pinning_to_the_environment(fresh, wanted):
    fresh.setenv("PARAGONE_PIN", wanted)
    before = torch.get_num_threads()
    try:
        module.set_threads(2)
        assert module.pinned() == (wanted == "1")
        assert module.threads() == 2
    finally:
        module._pin(False)
        torch.set_num_threads(before)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are placed on Linux only")
def test_threads_have_processors_of_their_own_where_that_is_wanted(fresh):
    fresh.setenv("PARAGONE_THREADS", "2")
    fresh.setenv("PARAGONE_PIN", "1")
    try:
        assert module.threads() == 2
        assert module.pinned()
        memory = torch.ones(1 << 20, dtype=torch.uint8)
        module.native.read_rate(memory.data_ptr(), len(memory), 2)
        second = module.one_of_each_core(module.processors())[1 % len(module.processors())]
        assert {second} in places()
        assert os.sched_getaffinity(0) == set(module.processors())  # the caller's own thread is left alone
    finally:
        module._pin(False)
    assert all(place == set(module.processors()) for place in places())


def test_processors_that_share_a_core_come_last(tmp_path, monkeypatch):
    for number, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings)
    monkeypatch.setattr(module, "CORES", tmp_path)
    assert module.one_of_each_core([0, 1, 2, 3, 9]) == [0, 1, 9, 2, 3]


@pytest.mark.parametrize("value", ["2", "yes", "-1"])
def test_pinning_is_yes_or_no(fresh, value):
    fresh.setenv("PARAGONE_PIN", value)
    with pytest.raises(UsageError, match="PARAGONE_PIN"):
        module.threads()


def test_fewer_where_more_are_no_faster(monkeypatch):
    class Flat:
        @staticmethod
        def read_rate(_at, _size, _count):
            return 1e10

        @staticmethod
        def multiply_rate(_bits, count):
            return 1e12 * min(count, 4)

    monkeypatch.setattr(module, "native", Flat)
    assert module.fastest([1, 2, 4, 8, 16]) == 4


def test_for_a_while_and_then_as_each_was():
    kernels, torchs = module.threads(), torch.get_num_threads()
    try:
        torch.set_num_threads(kernels + 1)
        with module.with_threads(kernels + 2):
            assert (module.threads(), torch.get_num_threads()) == (kernels + 2, kernels + 2)
        assert (module.threads(), torch.get_num_threads()) == (kernels, kernels + 1)
    finally:
        torch.set_num_threads(torchs)


def test_what_a_thread_throws_comes_to_the_caller():
    """Rows of no sensible width: an error, not the end of the process."""
    for _ in range(3):
        with pytest.raises(ValueError, match="max_size"):
            native.repack(FORMATS[0].native, 0, -1, 0, 0, "Q4_0", 0, 0, 0, 2)
    part, x = random_packed(40, 64, FORMATS[0])[0], inputs(9, 64)
    assert run(x, linear([part]), 40).isfinite().all()
