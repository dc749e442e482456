"""Chromium without a window, driven over two pipes by its DevTools protocol."""

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--remote-debugging-pipe", "--hide-scrollbars", "--window-size=1280,860",
)  # fmt: skip


def chromium() -> str | None:
    """Where it is, if it is here."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One tab."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        self._held, self._next, self._session = b"", 0, None
        self.told: list[dict[str, Any]] = []  # events: requests, messages of the console
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Accessibility"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> Any:
        self._next += 1
        message = {"id": self._next, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline, method
            *whole, self._held = self._held.split(b"\0")
            for at, raw in enumerate(whole):
                found = json.loads(raw)
                if found.get("id") == self._next:
                    self._held = b"\0".join([*whole[at + 1 :], self._held])
                    assert "error" not in found, found
                    return found["result"]
                self.told.append(found)
            self._held += os.read(self._reader, 1 << 20)

    def run(self, code: str) -> Any:
        """The value of an expression; promises are waited for."""
        found = self.send("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, code: str, seconds: float = 30.0) -> Any:
        """Waits until an expression is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(code)):
            assert time.monotonic() < deadline, (code, self.run("document.body.innerText"))
            time.sleep(0.05)
        return value

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def press(self, key: str) -> None:
        code = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowRight": 39, "ArrowLeft": 37}[key]
        more = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more
            )
            more = {}

    def point_at(self, selector: str) -> None:
        """Puts the mouse on the first of these elements that can be seen: a line break takes no room."""
        box = self.run(f"[...document.querySelectorAll({selector!r})].filter((e) => e.textContent.trim())"
                       ".flatMap((e) => [...e.getClientRects()]).filter((b) => b.width > 1)"
                       ".map((b) => [b.x + b.width / 2, b.y + b.height / 2])[0]")  # fmt: skip
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])

    def picture(self, path: Path) -> None:
        import base64

        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def browsing(folder: Path) -> Iterator[Page]:
    """A tab of a browser with a profile in `folder`."""
    program = chromium()
    assert program is not None
    (from_us, to_it), (from_it, to_us) = os.pipe(), os.pipe()

    def pipes() -> None:  # what it reads is its number 3, what it writes 4
        high = os.dup(from_us), os.dup(to_us)
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    command = [program, *FLAGS, f"--user-data-dir={folder}"]
    process = subprocess.Popen(
        command, preexec_fn=pipes,  # noqa: PLW1509 -- two numbers have to be the child's own
        pass_fds=(3, 4), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(from_us)
    os.close(to_us)
    try:
        yield Page(from_it, to_it)
    finally:
        process.kill()
        process.wait()
        os.close(from_it)
        os.close(to_it)
