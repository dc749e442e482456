"""Memory in large pages: tensors as any others, which keep what they lie in."""

import gc
import itertools
import mmap
import threading
from pathlib import Path

import pytest
import torch

from paragone.ops import pages

SIZES = [
    1,
    1000,
    pages.PAGE // 64,
    pages.PAGE // 2 + 3,
    pages.PAGE,
    3 * pages.PAGE + 1,
    pages.CHUNK // 2,
    pages.CHUNK + 7,
]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
def test_tensors_do_not_overlap(dtype):
    made = [pages.empty((3, size), dtype) for size in [*SIZES, *SIZES]]
    for number, tensor in enumerate(made):
        assert tensor.data_ptr() % pages.ALIGNMENT == 0
        assert tensor.is_contiguous()
        tensor.fill_(number)
    for number, (tensor, size) in enumerate(zip(made, [*SIZES, *SIZES], strict=True)):
        assert tensor.shape == (3, size)
        assert bool((tensor == number).all())


def test_what_is_small_shares_a_page():
    near = [pages.empty((pages.PAGE // 4,), torch.uint8).data_ptr() for _ in range(9)]
    assert sum(b - a == pages.PAGE // 4 for a, b in itertools.pairwise(near)) >= 7


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="Linux has large pages for who asks")
def test_large_pages_are_asked_for():
    tensor = pages.empty((4 * pages.PAGE,), torch.uint8)
    assert tensor.data_ptr() % pages.PAGE == 0
    tensor.fill_(1)
    place, flags = tensor.data_ptr(), []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first:
            low, high = (int(end, 16) for end in first.split("-"))
            inside = low <= place < high
        elif first == "VmFlags:" and inside:
            flags = line.split()
    assert "hg" in flags


def test_without_large_pages(monkeypatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert pages.empty((2, pages.CHUNK), torch.uint8).shape == (2, pages.CHUNK)


def test_memory_that_there_is_not():
    with pytest.raises(MemoryError, match="bytes: Cannot allocate memory"):
        pages.empty((1 << 62,), torch.uint8)


def test_memory_goes_with_its_tensors():
    def mapped():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmSize"))

    tensor = pages.empty((1 << 30,), torch.uint8)
    before = mapped()
    part = tensor[5:9]
    del tensor
    gc.collect()
    part.fill_(3)  # still there
    assert part.tolist() == [3, 3, 3, 3]
    del part
    gc.collect()
    assert mapped() <= before - (1 << 30)


def test_from_many_threads():
    found: list[torch.Tensor] = []

    def work(number):
        for _ in range(200):
            found.append(pages.empty((pages.PAGE // 50,), torch.uint8).fill_(number))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    places = sorted((t.data_ptr(), t.nbytes) for t in found)
    assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(places))
    assert all(bool((t == t[0]).all()) for t in found)
