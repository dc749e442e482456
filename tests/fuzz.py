"""Coverage-guided fuzzing of what parses: `python -m tests.fuzz [RUNS]`, as `make fuzz` does.

Each reader gets RUNS inputs, grown from right ones. Only errors of ours may come out; an input that
brings anything else is left in tests/corpus/READER and replayed by every test run.
"""

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

from paragone.checkpoint.gguf import read_gguf
from paragone.checkpoint.safetensors import read_safetensors
from paragone.errors import ParagoneError
from paragone.serve.call import decode
from paragone.serve.errors import ApiError
from paragone.serve.messages import Frames, FromEngine, ToEngine
from paragone.serve.schemas import ChatRequest, CompletionRequest

CORPUS = Path(__file__).with_name("corpus")


def one_file(reader: str, data: bytes, folder: Path) -> None:
    """A file and all its tensors."""
    path = folder / f"model.{reader}"
    path.write_bytes(data)
    found = read_gguf(path).tensors if reader == "gguf" else read_safetensors(path)
    for tensor in found.values():
        if tensor.nbytes < 1 << 16:
            tensor.rows()


def messages(data: bytes) -> None:
    """What one of the server's processes says to the other, in either direction."""
    for kind in (ToEngine, FromEngine):
        with contextlib.suppress(ParagoneError):
            list(Frames(kind).feed(data))


def bodies(data: bytes) -> None:
    """What a client sends."""
    for kind in (ChatRequest, CompletionRequest):
        with contextlib.suppress(ApiError):
            decode(data, kind)


READERS = ("gguf", "safetensors", "messages", "bodies")


def one_input(reader: str, data: bytes, folder: Path) -> None:
    """Reads one input. Raises what is not an error of ours."""
    if reader == "messages":
        messages(data)
    elif reader == "bodies":
        bodies(data)
    else:
        with contextlib.suppress(ParagoneError):
            one_file(reader, data, folder)


def fuzz(reader: str, runs: int) -> None:
    """Runs in a process of its own: libFuzzer never returns."""
    import atheris

    folder = Path(tempfile.mkdtemp())

    def target(data: bytes) -> None:
        one_input(reader, data, folder)

    crashes = CORPUS / reader
    crashes.mkdir(parents=True, exist_ok=True)
    flags = [sys.argv[0], f"-runs={runs}", "-max_len=2048", f"-artifact_prefix={crashes}/", "-timeout=5"]
    atheris.instrument_all()
    atheris.Setup([*flags, tempfile.mkdtemp(), str(crashes)], target)  # what grows goes to the first
    atheris.Fuzz()


if __name__ == "__main__":
    if len(sys.argv) == 3:
        fuzz(sys.argv[1], int(sys.argv[2]))
    for name in READERS:
        subprocess.run(
            [sys.executable, "-m", "tests.fuzz", name, (sys.argv[1:] or ["200000"])[0]], check=True
        )
