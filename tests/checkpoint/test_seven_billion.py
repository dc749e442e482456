"""A model of 7 billion parameters: what loading costs beside what stays, and that looking at it costs nothing."""

import shutil
import sys

import pytest
from benchmarks.seven_billion import PARAMETERS, load_apart, make

from paragone.engine.inspect import inspect_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("seven") / "model"
    try:
        make(path, numbers=False)
        yield path
    finally:
        shutil.rmtree(path.parent)  # pytest would keep the files of three runs


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_loading_peaks_barely_above_what_stays(precision, folder):
    found = load_apart(folder, precision)
    stays = found["weight_bytes"]
    least = {"bf16": 2, "int8": 1, "int4": 0.6}[precision] * PARAMETERS
    assert 0.95 * least < stays < 1.05 * least
    assert found["peak_bytes"] <= 1.1 * stays


def test_inspecting_reads_no_weight(folder):
    """It works as well where the shards end after their headers, as far as their lengths go."""
    found = inspect_model(folder)
    assert found["parameters"] == PARAMETERS
    headers = folder.with_name("headers")
    shutil.copytree(folder, headers, copy_function=_copy_header)
    other = inspect_model(headers)
    assert [other[key] for key in ("spec", "parameters_by_part", "weight_bytes", "stored_as")] == [
        found[key] for key in ("spec", "parameters_by_part", "weight_bytes", "stored_as")
    ]


def _copy_header(source, target):
    """The file with its numbers gone: a hole of the same length."""
    with open(source, "rb") as old, open(target, "wb") as new:
        if source.endswith(".json"):
            new.write(old.read())
            return
        size = int.from_bytes(old.read(8), "little")
        new.write(size.to_bytes(8, "little") + old.read(size))
        new.truncate(old.seek(0, 2))
