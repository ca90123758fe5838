"""Headless Chromium over its debugging pipe, by the standard library alone."""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


# A browser reads commands from its file 3 and writes answers to its file 4.
LAUNCH = """
import fcntl, os, sys
for file, number in [(fcntl.fcntl(int(sys.argv[i]), fcntl.F_DUPFD, 10), i + 2) for i in (1, 2)]:
    os.dup2(file, number)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One tab. Calls are of the Chrome DevTools Protocol."""

    def __init__(self, program: str, profile: Path):
        our_read, its_write = os.pipe()
        its_read, our_write = os.pipe()
        self._write, self._read = os.fdopen(our_write, "wb"), os.fdopen(our_read, "rb")
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-ISc", LAUNCH, str(its_read), str(its_write)),
                *(program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update"),
                *("--disable-dev-shm-usage", "--hide-scrollbars"),
                *(f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"),
            ],
            pass_fds=(its_read, its_write),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(its_read)
        os.close(its_write)
        self._last, self._session, self.events = 0, None, []
        tabs = self.call("Target.getTargets")["targetInfos"]
        tab = next(target["targetId"] for target in tabs if target["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while (answer := self._receive()).get("id") != self._last:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self._read.read1(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser has ended")
            data += byte
            if self._read.peek(1):  # what is there already, up to the end of the message
                ready = self._read.peek(1)
                end = ready.find(b"\0")
                data += self._read.read(len(ready) if end < 0 else end)
        message = json.loads(data)
        if "id" not in message:
            self.events.append(message)
        return message

    def open(self, file: Path, width: int = 1100, height: int = 900, mobile: bool = False) -> None:
        """Opens a file without a network, at a size in CSS pixels, and waits until it is loaded."""
        self.events.clear()
        self.call("Network.emulateNetworkConditions", offline=True, latency=0,
                  downloadThroughput=-1, uploadThroughput=-1)  # fmt: skip
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=mobile)  # fmt: skip
        self.call("Page.navigate", url=file.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._receive()

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page, of a promise what it gives."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True,
                           returnByValue=True)  # fmt: skip
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def drag(self, *points: tuple[float, float]) -> None:
        """Presses the mouse at the first point, moves it along the others and releases it."""
        kinds = ["mousePressed", *["mouseMoved"] * (len(points) - 1), "mouseReleased"]
        for kind, (x, y) in zip(kinds, [*points, points[-1]], strict=True):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1,
                      clickCount=1)  # fmt: skip

    def screenshot(self, file: Path) -> None:
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self._session = None
        try:
            self.call("Browser.close")
        except (RuntimeError, OSError):
            self._process.kill()
        self._process.wait()
        self._write.close()
        self._read.close()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no headless Chromium here ({', '.join(NAMES)}): Debian's package is chromium")
    browser = Browser(program, tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()
