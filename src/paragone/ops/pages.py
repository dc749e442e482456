"""Memory for what is read in every step, in the large pages that the system has.

Most systems give them only to who asks. With small ones a processor finds out every 4 KB where memory goes
on, in a virtual machine twice over, and what it fetches ahead by itself ends there: reading weights takes up
to half as long again.
"""

import contextlib
import math
import mmap
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

PAGE = 2 << 20  # bytes of a large one, on x86 and on ARM with pages of 4 KB
CHUNK = 8 * PAGE  # shared by tensors that are smaller than a page
ALIGNMENT = 64

_lock = threading.Lock()
_chunk: mmap.mmap | None = None  # the one that is being filled
_at = _end = 0


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the CPU. Memory is taken as it is first written, a page at a time. Raises
    MemoryError where there is none to be had."""
    global _chunk, _at, _end  # noqa: PLW0603 -- one process, one heap
    count = math.prod(shape)
    nbytes = count * dtype.itemsize
    if not hasattr(mmap, "MADV_HUGEPAGE") or nbytes < PAGE // 64:
        return torch.empty(*shape, dtype=dtype)
    if nbytes >= PAGE:
        mapped, at = _mapped(nbytes)
    else:
        with _lock:
            if _chunk is None or _at + nbytes > _end:
                _chunk, _at = _mapped(CHUNK)
                _end = _at + CHUNK
            mapped, at = _chunk, _at
            _at = -(-(_at + nbytes) // ALIGNMENT) * ALIGNMENT
    return torch.frombuffer(mapped, dtype=dtype, count=count, offset=at).view(*shape)


def _mapped(nbytes: int) -> tuple[mmap.mmap, int]:
    """Memory that begins at a large page: the mapping, and where in it. The tensors keep it."""
    try:
        mapped = mmap.mmap(-1, nbytes + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as err:
        raise MemoryError(f"{nbytes:,} bytes: {err.strerror}") from None
    first = -torch.frombuffer(mapped, dtype=torch.uint8).data_ptr() % PAGE
    with contextlib.suppress(OSError):  # a kernel without them: small ones do
        # Whole ones only: behind the end of what is asked for, memory would be taken for nothing.
        mapped.madvise(mmap.MADV_HUGEPAGE, first, nbytes // PAGE * PAGE)
    return mapped, first
