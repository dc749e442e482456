"""Where Paragone keeps what it downloads and measures."""

import os
import sys
from pathlib import Path


def home() -> Path:
    """Paragone's own folder: $PARAGONE_HOME, else `paragone` in the platform's cache folder."""
    override = os.environ.get("PARAGONE_HOME")
    if override:
        return Path(override).expanduser()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "paragone"


def models_dir() -> Path:
    """One folder per pulled model."""
    return home() / "models"


def history_file() -> Path:
    """The SQLite file with every comparison made on this machine."""
    return home() / "runs.sqlite3"


def runs_dir() -> Path:
    """The JSON and HTML reports of comparisons."""
    return home() / "runs"
