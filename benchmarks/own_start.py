"""`paragone generate` on a file, one token; run by cpu_kernels.py, the twin of peer_llamacpp.py's `start`.

    python own_start.py start|import FILE PRECISION

Its first line of output is there when the first token is; that of `import` when PyTorch is
imported, without which there is none.
"""

import sys

if __name__ == "__main__":
    _, mode, path, precision = sys.argv
    if mode == "import":
        import torch

        print(torch.__version__)
    else:
        from paragone.cli.main import main

        sys.argv[1:] = ["generate", path, "The sky is", "--precision", precision, "--max-tokens", "1"]
        main()
