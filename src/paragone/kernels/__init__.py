"""The compiled kernels for the CPU, where they were built: `native` is the module, or None.

PARAGONE_NATIVE names another build of it, such as one with sanitizers.
"""

import importlib
import importlib.util
import os
from typing import Any

native: Any
try:
    if _path := os.environ.get("PARAGONE_NATIVE"):
        _spec = importlib.util.spec_from_file_location("paragone.kernels._native", _path)
        if _spec is None or _spec.loader is None:
            raise ImportError(f"PARAGONE_NATIVE={_path}: no module")
        native = importlib.util.module_from_spec(_spec)
        _spec.loader.exec_module(native)
    else:
        native = importlib.import_module("paragone.kernels._native")
except ImportError:  # no compiler at installation, or another processor: PyTorch does everything
    if os.environ.get("PARAGONE_NATIVE"):
        raise
    native = None
