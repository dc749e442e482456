"""How many threads the kernels take."""

import json

import pytest
import torch

from paragone import paths
from paragone.errors import UsageError
from paragone.ops import threads as module


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("PARAGONE_HOME", str(tmp_path))
    monkeypatch.delenv("PARAGONE_THREADS", raising=False)
    monkeypatch.setattr(module, "_chosen", None)
    return monkeypatch


def test_it_is_measured_once_and_remembered(fresh):
    count = module.threads()
    assert json.loads((paths.home() / "threads.json").read_text())["threads"] == count
    fresh.setattr(module, "_chosen", None)
    fresh.setattr(module, "fastest", None)  # nothing is measured again
    assert module.threads() == count


@pytest.mark.parametrize("kept", ["", "[]", "{", '{"machine": "another", "threads": 7}', '{"threads": "x"}'])
def test_what_cannot_be_used_is_measured_anew(fresh, kept):
    (paths.home() / "threads.json").write_text(kept)
    fresh.setattr(module, "fastest", lambda counts: counts[-1])
    assert module.threads() == module._candidates(len(__import__("os").sched_getaffinity(0)))[-1]


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


def test_fewer_where_more_are_no_faster(monkeypatch):
    class Flat:
        @staticmethod
        def read_rate(_at, _size, _count):
            return 1e10

        @staticmethod
        def multiply_rate(_integers, count):
            return 1e12 * min(count, 4)

    monkeypatch.setattr(module, "native", Flat)
    assert module.fastest([1, 2, 4, 8, 16]) == 4
