"""The process that engines are forked from, and the sockets to it and to them. Imports next to nothing, so
that it can be started first and imports PyTorch while this one imports HTTP."""

import contextlib
import os
import socket
import struct
import subprocess
import sys

FORK, END = b"f", b"e"  # what the fork server is told
EXIT_CODE = struct.Struct("i")  # what it answers to END
END_SECONDS = 5.0  # until one that does not answer is killed itself


class ForkServer:
    """Forks engines, one at a time, from a process that has imported what they need: another is there at once
    where one has ended. `fork_server.py` is its other side."""

    def __init__(self) -> None:
        """Starts the process. Raises OSError where there is no memory or no process left."""
        self._running = False
        self._start()

    def _start(self) -> None:
        self._control, there = socket.socketpair()
        self._control.settimeout(END_SECONDS)
        with there, contextlib.ExitStack() as failed:
            failed.enter_context(self._control)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "paragone.serve.fork_server", str(there.fileno())],
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # the terminal's signals are not for it
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # its threads would be lost in a fork
            )
            failed.pop_all()

    def fork(self) -> socket.socket:
        """This side's end of the socket to a new engine, which speaks when it is there; the last one must
        have ended. Starts the process again where that is gone. Raises OSError where it cannot be had."""
        if self._process.poll() is not None:
            self._control.close()
            self._start()
        here, there = socket.socketpair()
        with there, contextlib.ExitStack() as failed:
            failed.enter_context(here)
            socket.send_fds(self._control, [FORK], [there.fileno()])
            failed.pop_all()
        here.setblocking(False)
        self._running = True
        return here

    def end(self) -> int | None:
        """Kills the engine if it has not ended, and returns its exit code (negative: a signal's number), None
        where the process does not know it any more. May take seconds."""
        if not self._running:
            return None
        self._running = False
        try:
            self._control.sendall(END)
            return int(EXIT_CODE.unpack(self._control.recv(EXIT_CODE.size))[0])
        except (OSError, struct.error):  # gone, or hung: an engine does not outlive it
            self.kill()
            return None

    def kill(self) -> None:
        """Ends the process and its engine at once, if they have not ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
