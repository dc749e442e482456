"""The other side of process.py: imports PyTorch and the engine, and forks a worker whenever it is told to.

    python -m paragone.serve.fork_server FD

Only one thread may run here, and no kernel: a forked process has the thread that forked, and no other.
"""

import contextlib
import ctypes
import gc
import importlib
import os
import signal
import socket
import sys

from paragone.errors import message_of
from paragone.serve.process import END, EXIT_CODE, FORK

PR_SET_NAME, PR_SET_PDEATHSIG = 15, 1
WORKER = "paragone.serve.worker"


def prctl(option: int, value: int | bytes) -> None:
    """Linux alone has it; elsewhere a process ends when its socket does."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(option, value)


def forked(channel: socket.socket, control: socket.socket) -> int:
    """The number of a new process, in which a worker serves the channel to its end."""
    number = os.fork()
    if number:
        return number
    code = 70
    try:
        control.close()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_NAME, b"paragone-engine")
        importlib.import_module(WORKER).Worker(channel).run()
        code = 0
    except Exception as err:
        sys.stderr.write(f"engine: {message_of(err)}\n")
    finally:
        sys.stderr.flush()
        os._exit(code)  # threads that load or compile must not keep it


def ended(number: int) -> int:
    """The exit code of a process, which is killed if it has not ended."""
    os.kill(number, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def main() -> None:
    """Serves the socket whose number is the argument, until its other end is gone."""
    for ignored in (signal.SIGINT, signal.SIGTERM):  # the other process decides when this one ends
        signal.signal(ignored, signal.SIG_IGN)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    control = socket.socket(fileno=int(sys.argv[1]))
    importlib.import_module(WORKER)  # takes seconds: after it is settled how this process ends
    gc.freeze()  # an engine's collector must not write to pages that they share
    engine: int | None = None
    while True:
        command, channels, _, _ = socket.recv_fds(control, 1, 1)
        if command == FORK:
            with socket.socket(fileno=channels[0]) as channel:
                engine = forked(channel, control)
        elif command == END:
            control.sendall(EXIT_CODE.pack(ended(engine) if engine else 0))
            engine = None
        else:
            return


if __name__ == "__main__":
    try:
        main()
    except (ImportError, OSError) as err:  # or no memory, no processes: the other side starts anew
        sys.exit(f"engine: {message_of(err)}")
