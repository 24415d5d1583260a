"""Headless Chromium by its debugging protocol: a tab that opens pages as a desktop or a phone shows them.

`browser()` gives a tab, or None where the machine has no Chromium; `check_address` and `check_quiet` raise
AssertionError where something on a page fails, is wider than the window, or is loaded from elsewhere.
"""

import json
import shutil
import subprocess
import tempfile
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
SECONDS = 60


class Tab:
    """One tab of the browser over its debugging protocol; `failures` and `requests` are what happened in it."""

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=SECONDS, suppress_origin=True)
        self._number, self.failures, self.requests = 0, list[str](), list[str]()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> Any:
        """The result of one command; events that come before it are noted."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            said = self._next()
            if said.get("id") == self._number:
                assert "error" not in said, f"{method}: {said['error']}"
                return said["result"]

    def open(self, address: str, size: str, theme: str) -> None:
        """Load an address at the width of a device, in a light or a dark theme."""
        width, height = SIZES[size]
        self.failures, self.requests = [], []
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=size == "phone")  # fmt: skip
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        self.send("Page.navigate", url=address)
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, f"{expression}: {found['exceptionDetails']}"
        return found["result"].get("value")

    def click(self, selector: str) -> None:
        """Press and release the mouse in the middle of an element."""
        self.point(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **self._middle(selector))

    def point(self, selector: str) -> None:
        """Move the mouse to the middle of an element."""
        self.ask(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        self.send("Input.dispatchMouseEvent", type="mouseMoved", **self._middle(selector))

    def key(self, name: str) -> None:
        """Press and release a key, as in "ArrowRight"."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=name, code=name)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """The page as a PNG: all of it, or what the window shows."""
        picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(b64decode(picture["data"]))

    def _middle(self, selector: str) -> dict[str, float]:
        box = self.ask(f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getClientRects()[0];"
                       " return {x: b.x + b.width / 2, y: b.y + b.height / 2}; })()")  # fmt: skip
        return box

    def _next(self) -> dict[str, Any]:
        said = json.loads(self._socket.recv())
        method, params = said.get("method"), said.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.failures.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.failures.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.failures.append(params["entry"]["text"])
        return said


@contextmanager
def browser() -> Iterator[Tab | None]:
    """A tab of a new headless Chromium without a profile; None where the machine has none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        yield None
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        running = subprocess.Popen(
            [program, *QUIET, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            port, until = Path(profile, "DevToolsActivePort"), time.monotonic() + SECONDS
            while not (port.exists() and port.read_text().count("\n")):
                assert running.poll() is None and time.monotonic() < until, "Chromium did not start"
                time.sleep(0.1)
            with urlopen(f"http://127.0.0.1:{port.read_text().split()[0]}/json/list", timeout=SECONDS) as answer:
                tabs = json.load(answer)
            yield Tab(next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"))
        finally:
            running.terminate()
            running.wait(SECONDS)


def check_address(tab: Tab, address: str, size: str, theme: str, picture: Path, within: str | None = None) -> None:
    """Open any address: nothing fails, nothing is loaded from elsewhere, and nothing is wider than the window. The
    picture is of the whole page, of a page `within` a site what the window shows, which is sooner drawn."""
    tab.open(address, size, theme)
    tab.screenshot(picture, whole=within is None)
    wide = tab.ask("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"{address} is {wide} pixels wider than a {size}"
    check_quiet(tab, address, within)


def check_quiet(tab: Tab, address: str, within: str | None = None) -> None:
    """Nothing has failed, and nothing was loaded but the page itself, or what lies `within` a site."""
    assert not tab.failures, f"{address}: {tab.failures}"
    page = address.partition("#")[0]
    others = [one for one in tab.requests if one.partition("#")[0] != page]
    others = [one for one in others if within is None or not one.startswith((within, "data:"))]
    assert not others, f"{address} loads {others}"
