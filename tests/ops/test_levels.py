"""The tests of the kernels at every instruction level that this machine has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from paragone import kernels

LEVELS = "base", "avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx_in_software", "amx"
FILES = [
    str(Path(__file__).with_name(f"test_{name}.py"))
    for name in ("products", "hadamard", "attention", "rowwise", "feed_forward")
]


def test_the_kernels_are_built_here():
    assert kernels.native is not None


def test_no_level_is_refused():
    """What the processor has gives the products of the level below."""
    assert kernels.native.refused_levels == []


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_passes(level):
    """Those files again, in a process that is held to a level; this one has the best."""
    if level == kernels.native.level:
        return
    found = subprocess.run(
        [sys.executable, "-c", "from paragone.kernels import native; print(native.level)"],
        env=os.environ | {"PARAGONE_KERNELS": level}, capture_output=True, text=True,
    )  # fmt: skip
    if found.stdout.strip() != level:
        assert level != "base"  # the machine does not have this level, and said so by taking its best
        return
    run = subprocess.run(
        # What sanitizers say is not to be kept back by pytest: they end the process.
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--capture=sys", *FILES],
        env=os.environ | {"PARAGONE_KERNELS": level}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]


def test_a_level_that_is_not_here_is_refused_by_name():
    found = subprocess.run(
        [sys.executable, "-c", "import paragone.ops.choose"],
        env=os.environ | {"PARAGONE_KERNELS": "avx9"}, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode != 0
    assert f"PARAGONE_KERNELS is 'avx9'; this machine has {kernels.native.levels[0]}" in found.stderr
