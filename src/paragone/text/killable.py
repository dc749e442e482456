"""A helper process that answers line by line, and is killed where it takes too long.

For work on foreign data whose time nobody can bound from inside: templates, grammars. A thread that is
given up goes on using the processor; a process does not.
"""

import contextlib
import os
import selectors
import subprocess
import threading
import time
from collections.abc import Sequence

from paragone.errors import ParagoneError


class TookTooLong(ParagoneError):
    """The process did not answer in time, and was killed."""


class ProcessEnded(ParagoneError):
    """The process ended instead of answering: it met a limit on memory or processor time."""


START_SECONDS = 20.0


class LineProcess:
    """Started when it is needed, and again after it was killed. One question at a time. `first` is what a new
    process is asked before anything else: its start is not the fault of what it is asked then."""

    def __init__(self, command: Sequence[str], seconds: float, first: bytes) -> None:
        self._command, self._seconds, self._first = list(command), seconds, first
        self._is_new = True
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return None if self._process is None else self._process.pid

    def start(self) -> subprocess.Popen[bytes]:
        """The running process. Starting it early hides its start-up behind other work."""
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self._is_new = True
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal is not for it
            )
        return self._process

    def stop(self) -> None:
        """Kills the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._process.wait()
            self._process = None

    def ask(self, line: bytes) -> bytes:
        """The answer to a line. Raises TookTooLong or ProcessEnded; the process is gone then. A process that
        ends may have used up its own time with earlier questions: it is tried once more with a new one."""
        with self._lock:
            try:
                try:
                    return self._answer(line)
                except ProcessEnded:
                    self.stop()
                    return self._answer(line)
            except BaseException:
                self.stop()  # an answer that was not read must not become the next one
                raise

    def _answer(self, line: bytes) -> bytes:
        try:
            process = self.start()
        except OSError as err:
            raise ProcessEnded(f"could not be started: {err.strerror}") from None
        if self._is_new:
            self._exchange(process, self._first, START_SECONDS)
            self._is_new = False
        return self._exchange(process, line, self._seconds)

    @staticmethod
    def _exchange(process: "subprocess.Popen[bytes]", line: bytes, seconds: float) -> bytes:
        assert process.stdin  # noqa: S101 -- opened as a pipe above
        assert process.stdout  # noqa: S101
        deadline = time.monotonic() + seconds
        reader, writer = process.stdout.fileno(), process.stdin.fileno()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        answer = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(reader, selectors.EVENT_READ)
            selector.register(writer, selectors.EVENT_WRITE)
            while not answer.endswith(b"\n"):
                ready = selector.select(max(deadline - time.monotonic(), 0))
                if not ready:
                    raise TookTooLong(f"took more than {seconds:g} seconds")
                try:
                    for key, _ in ready:
                        if key.fd == writer:
                            line = line[os.write(writer, line[: 1 << 16]) :]
                            if not line:
                                selector.unregister(writer)
                        else:
                            data = os.read(reader, 1 << 20)
                            if not data:
                                raise BrokenPipeError
                            answer += data
                except OSError:
                    raise ProcessEnded("ended its process: out of memory?") from None
        return bytes(answer)
