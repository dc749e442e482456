"""The engine's process and the socket to it. Imports next to nothing, so that the process can be started
first and imports PyTorch while this one imports HTTP."""

import contextlib
import socket
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class EngineProcess:
    """The process and this side's end of the socket between them."""

    process: subprocess.Popen[bytes]
    channel: socket.socket

    @classmethod
    def start(cls) -> "EngineProcess":
        """Raises OSError where there is no memory or no process left."""
        here, there = socket.socketpair()
        with there, contextlib.ExitStack() as failed:
            failed.enter_context(here)
            process = subprocess.Popen(
                [sys.executable, "-m", "paragone.serve.worker", str(there.fileno())],
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # the terminal's signals are not for it
            )
            failed.pop_all()
        here.setblocking(False)
        return cls(process, here)

    def kill(self) -> None:
        """Ends it at once, if it has not ended."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
