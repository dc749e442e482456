"""Text that arrives token by token: never half a character, never past a stop string."""

from codecs import utf_8_decode
from collections.abc import Sequence

from paragone import limits
from paragone.errors import UsageError


def check_stop_strings(stops: Sequence[str]) -> tuple[str, ...]:
    """The stop strings, or UsageError naming the one that is not usable."""
    if len(stops) > limits.STOP_STRINGS:
        raise UsageError(f"stop: {len(stops)} strings, at most {limits.STOP_STRINGS}")
    for stop in stops:
        if not stop or len(stop) > limits.STOP_STRING_CHARS:
            raise UsageError(f"stop: {stop[:20]!r} is empty or longer than {limits.STOP_STRING_CHARS}")
    return tuple(stops)


class TextStream:
    """Bytes in, text out. Holds back what may yet become a character or a stop string (`check_stop_strings`
    says which may be given by users).

    Of several stop strings the one that is complete first ends the text; where two complete with the
    same character, the one that begins first. The text ends before it.
    """

    def __init__(self, stops: Sequence[str] = (), *, drop_first_space: bool = False) -> None:
        self.stops = tuple(stops)
        self.stopped = False
        self._bytes = b""  # of a character that is not complete
        self._held = ""
        self._drop_space = drop_first_space

    def push(self, data: bytes) -> str:
        """Takes the next token's bytes and returns the text that is now certain."""
        text = self._decode(data, final=False)
        return self._emit(text) if self.stops or self._held or self._drop_space or self.stopped else text

    def finish(self) -> str:
        """The rest, at the end of the answer: unfinished characters become U+FFFD."""
        text = self._emit(self._decode(b"", final=True))
        if self.stopped:
            return text
        text, self._held = text + self._held, ""
        return text

    def _decode(self, data: bytes, *, final: bool) -> str:
        data = self._bytes + data if self._bytes else data
        text, used = utf_8_decode(data, "replace", final)
        self._bytes = data[used:]
        return text

    def _emit(self, text: str) -> str:
        if self.stopped or not text:
            return ""
        if self._drop_space:
            self._drop_space = False
            text = text.removeprefix(" ")
        before = len(self._held)
        text = self._held + text
        if not self.stops:
            return text
        ends = [self._first_end(text, stop, before) for stop in self.stops]
        found = [(end, end - len(stop)) for end, stop in zip(ends, self.stops, strict=True) if end >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        keep = max(self._overlap(text, stop) for stop in self.stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    @staticmethod
    def _first_end(text: str, stop: str, before: int) -> int:
        """Where the first occurrence of `stop` that ends after position `before` ends, or -1."""
        at = text.find(stop, max(0, before - len(stop) + 1))
        return -1 if at < 0 else at + len(stop)

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of the text that begins the stop string."""
        longest = min(len(text), len(stop) - 1)
        return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)
