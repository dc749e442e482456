import contextlib

import pytest

from tests.serve.harness import serving, serving_tiny
from tests.serve.tiny_model import write_tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return write_tiny_model(
        tmp_path_factory.mktemp("tiny") / "tiny", settings={"temperature": 0.7, "top_k": 40}
    )


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("other") / "other", seed=1)


@pytest.fixture(scope="session")
def server(tiny_folder, other_folder):
    """Two tiny models, the second loaded when it is asked for; no keys; the same answer to the same question."""
    options = "--request-timeout", "30", "--kv-cache-mb", "64", "--deterministic"
    with serving(f"tiny={tiny_folder}:bf16", f"other={other_folder}:bf16", *options, model="tiny") as found:
        yield found


@pytest.fixture(scope="session")
def smollm2_server(smollm2_path):
    """The real model, as its file is, in the mode whose answers do not depend on what runs beside them."""
    options = "--deterministic", "--kv-cache-mb", "400"
    with serving(f"smollm2={smollm2_path}", *options, model="smollm2") as found:
        yield found


@pytest.fixture
def own(tiny_folder):
    """A server of its own for a test, which may end it."""
    with contextlib.ExitStack() as stack:
        yield lambda *more: stack.enter_context(serving_tiny(tiny_folder, *more, lent=False))


@pytest.fixture
def quick(tiny_folder):
    """The same, there sooner."""
    with contextlib.ExitStack() as stack:
        yield lambda *more: stack.enter_context(serving_tiny(tiny_folder, *more))
