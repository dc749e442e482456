"""`paragone generate` on a file, one token; run by cpu_kernels.py, the twin of peer_llamacpp.py's `start`.

    python own_start.py start FILE PRECISION

Its first line of output is there when the first token is.
"""

import sys

from paragone.cli.main import main

if __name__ == "__main__":
    _, _, path, precision = sys.argv
    sys.argv[1:] = ["generate", path, "The sky is", "--precision", precision, "--max-tokens", "1"]
    main()
