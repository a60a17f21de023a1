"""A headless Chromium that tests drive by its DevTools protocol over a pipe: no driver, no port, no package.

The browser reads requests from its descriptor 3 and writes answers and events to descriptor 4, each a JSON text that a
NUL ends (https://chromedevtools.github.io/devtools-protocol/).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
)
ANSWER_SECONDS = 60.0


class Page:
    """One tab. `requests` are the addresses that it asked for, `complaints` what its console and its errors say."""

    def __init__(self, reading: int, writing: int) -> None:
        self.requests: List[str] = []
        self.complaints: List[str] = []
        self._reading, self._writing = reading, writing
        self._waiting = b""
        self._number = 0
        self._session: Optional[str] = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of a method of the protocol."""
        self._number += 1
        request: Dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            request["sessionId"] = self._session
        os.write(self._writing, json.dumps(request).encode() + b"\0")
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def open(self, address: str) -> None:
        """Load a page from nothing, and wait until it is there."""
        self.call("Page.navigate", url="about:blank")
        self.requests.clear()
        self.complaints.clear()
        told = self.call("Page.navigate", url=address)
        assert not told.get("errorText"), told
        self.wait(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(address[:20])})")

    def run(self, script: str) -> Any:
        """The value of an expression in the page, awaited if it is a promise."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while not self.run(script):
            assert time.monotonic() < deadline, f"never true: {script}"
            time.sleep(0.02)

    def press(self, key: str, code: int) -> None:
        """A key, with the number that Windows gives it, which the browser's own bindings go by."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def type(self, text: str) -> None:
        """Text where the focus is."""
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        """What is in view, as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _next(self, deadline: float) -> Dict[str, Any]:
        """The next message; events are noted on the way."""
        while b"\0" not in self._waiting:
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self._reading], [], [], left)[0]
            piece = os.read(self._reading, 1 << 20) if ready else b""
            assert piece, "the browser gives no answer"
            self._waiting += piece
        text, _, self._waiting = self._waiting.partition(b"\0")
        message: Dict[str, Any] = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, event: Dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(event["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.complaints.append(event["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str([argument.get("value") for argument in event["args"]]))


def find_browser() -> Optional[str]:
    """The path of a Chromium on this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def open_browser(program: str) -> Iterator[Page]:
    """A browser with one empty tab; it is ended, and its profile removed, with the block."""
    to_browser, writing = os.pipe()
    reading, from_browser = os.pipe()
    with contextlib.ExitStack() as stack:
        profile = tempfile.mkdtemp(prefix="browser-")
        stack.callback(shutil.rmtree, profile, ignore_errors=True)
        # The shell gives the pipes the numbers that the browser expects.
        command = ["bash", "-c", f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}', program, *OPTIONS]
        browser = subprocess.Popen(
            [*command, f"--user-data-dir={profile}"], pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        try:
            yield Page(reading, writing)
        finally:
            os.close(writing)
            os.close(reading)
            browser.terminate()
            browser.wait()
