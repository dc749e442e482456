"""Coverage-guided fuzzing of the readers: `python -m tests.fuzz [RUNS]`, as `make fuzz` does.

Each reader gets RUNS inputs, grown from right files. Only errors of ours may come out; an input that
brings anything else is left in tests/corpus/READER and replayed by every test run.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from paragone.checkpoint.gguf import read_gguf
from paragone.checkpoint.safetensors import read_safetensors
from paragone.errors import ParagoneError

CORPUS = Path(__file__).with_name("corpus")
READERS = {"gguf": read_gguf, "safetensors": read_safetensors}


def one_input(reader: str, data: bytes, folder: Path) -> None:
    """Reads one input and all its tensors. Raises what is not an error of ours."""
    path = folder / f"model.{reader}"
    path.write_bytes(data)
    try:
        found = READERS[reader](path)
        for tensor in (found.tensors if reader == "gguf" else found).values():
            if tensor.nbytes < 1 << 16:
                tensor.rows()
    except ParagoneError:
        pass


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
