"""What every test relies on: no network, a home of its own, two threads."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty PARAGONE_HOME."""
    path = tmp_path / "home"
    monkeypatch.setenv("PARAGONE_HOME", str(path))
    return path
