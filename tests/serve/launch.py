"""`paragone serve` whose engines are forked from a process that the tests have already: it answers some seconds
sooner, and is the same in all else.

    python -m tests.serve.launch FD ARGUMENTS
"""

import socket
import sys
from types import SimpleNamespace

from paragone.cli.main import run
from paragone.serve import process


class Lent(process.ForkServer):
    """The fork server behind the socket whose number is the first argument. It outlives this process."""

    def _start(self) -> None:
        self._control = socket.socket(fileno=int(sys.argv[1]))
        self._control.settimeout(60.0)  # it may still be importing
        self._process = SimpleNamespace(poll=lambda: None)
        self._running = True
        self.end()  # what the last server left

    def kill(self) -> None:
        self.end()


if __name__ == "__main__":
    process.ForkServer = Lent
    sys.exit(run(["serve", *sys.argv[2:]]))
