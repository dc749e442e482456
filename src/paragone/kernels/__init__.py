"""The compiled kernels for the CPU, where they were built: `native` is the module, or None.

`ops/` asks here; nothing else does. Import torch first: both then share one pool of threads.
"""

import importlib
from typing import Any

native: Any
try:
    native = importlib.import_module("paragone.kernels._native")
except ImportError:  # no compiler at installation, or another processor: PyTorch does everything
    native = None
