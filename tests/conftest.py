"""What every test relies on: no network, a home of its own where it asks for one, real models on disk."""

import os

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("PARAGONE_THREADS", "2")  # measured, it would be another number from run to run
if "PYTEST_XDIST_WORKER" in os.environ:  # PyTorch's threads of several processes only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run; PARAGONE_EXPLORE=1 looks for new ones.
settings.register_profile("same", derandomize=not os.environ.get("PARAGONE_EXPLORE"), deadline=None)
settings.load_profile("same")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty PARAGONE_HOME."""
    path = tmp_path / "home"
    monkeypatch.setenv("PARAGONE_HOME", str(path))
    return path


@pytest.fixture(scope="session")
def smollm2_path():
    """SmolLM2's file, in the real home: what asks for a home of its own must not pull it there."""
    from tests.real import SMOLLM2, path_of

    return path_of(SMOLLM2)


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct at bf16, shared by all tests."""
    from paragone.engine.load import load_model
    from tests.real import SMOLLM2, path_of

    return load_model(path_of(SMOLLM2), SMOLLM2, "bf16")


@pytest.fixture(scope="session")
def smollm2_tokenizer():
    from paragone.checkpoint.gguf import read_gguf
    from paragone.text.tokenizer import tokenizer_from_gguf
    from tests.real import SMOLLM2, path_of

    return tokenizer_from_gguf(read_gguf(path_of(SMOLLM2)).metadata, path_of(SMOLLM2))


@pytest.fixture(scope="session")
def gemma3_tokenizer():
    from paragone.checkpoint.gguf import read_gguf
    from paragone.text.tokenizer import tokenizer_from_gguf
    from tests.real import GEMMA3, path_of

    return tokenizer_from_gguf(read_gguf(path_of(GEMMA3)).metadata, path_of(GEMMA3))
