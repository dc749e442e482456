"""A model of 7 billion parameters: what loading costs beside what stays, and that looking at it costs nothing.

Loaded are eight of its 32 layers: what is needed beside what stays is needed for a tensor, however many there are, so
the bound is the tighter for it. `make bench-load` loads all of them."""

import shutil
import sys

import pytest
from benchmarks.seven_billion import A_LAYER, PARAMETERS, load_apart, make

from paragone.engine.inspect import inspect_model

LAYERS = 5


@pytest.fixture
def made(tmp_path):
    """Makes it, with so many layers."""
    path = tmp_path / "seven" / "model"

    def of(layers):
        make(path, numbers=False, layers=layers)
        return path

    yield of
    shutil.rmtree(path.parent)  # pytest would keep the files of three runs


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_loading_peaks_barely_above_what_stays(precision, made):
    found = load_apart(made(LAYERS), precision)
    stays = found["weight_bytes"]
    # Of a weight: twelve of sixteen bits, or with its share of scales and minima. The embedding stays in the file; in four bits the head has
    # eight.
    sizes = {"bf16": 1.5, "int8": 1, "int4": 0.5 + 4 / 32}
    head = 32000 * 4096
    weights = sizes[precision] * LAYERS * A_LAYER + max(sizes[precision], sizes["int8"]) * head
    assert stays == pytest.approx(weights, rel=0.01)
    assert found["peak_bytes"] <= 1.1 * stays


def test_inspecting_reads_no_weight(made):
    """It works as well where the shards end after their headers, as far as their lengths go."""
    folder = made(32)
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
