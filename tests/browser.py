"""A headless browser, driven over its own pipe by the standard library alone.

Any relative of Chromium will do: the one that the environment variable TFJOINT_BROWSER names, or
the first of `NAMES` on the PATH.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

NAMES = (
    *("chromium-headless-shell", "chrome-headless-shell", "chromium", "chromium-browser"),
    *("google-chrome", "google-chrome-stable", "chrome", "microsoft-edge"),
)
VARIABLE = "TFJOINT_BROWSER"
FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",  # tests may run as root
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # whatever is asked for, nothing leaves the machine
)
SOFTWARE_WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
NO_WEBGL = ("--disable-gpu", "--disable-3d-apis")
# A browser reads commands from its descriptor 3 and writes answers to 4.
START = """
import fcntl, os, sys
commands, answers = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])
os.dup2(commands, 3)
os.dup2(answers, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 60  # seconds
KEY_CODES = {"Tab": 9, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}

Offset = tuple[float, float]
"""Pixels to the right and down."""


def find() -> str | None:
    """The path of a browser, if there is one."""
    named = os.environ.get(VARIABLE)
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A running browser with one page; a context manager."""

    def __init__(self, path: str, profile: Path, flags: tuple[str, ...] = SOFTWARE_WEBGL) -> None:
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()
        arguments = [path, *FLAGS, *flags, f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", START, str(commands), str(answers), *arguments],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(commands)
        os.close(answers)
        os.set_blocking(self._from, False)
        self._buffer = b""
        self._sent = 0
        self.events: list[dict] = []
        """Everything that the page has reported, in order."""
        target = self._send("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self._send("Target.attachToTarget", {"targetId": target, "flatten": True})
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def __call__(self, method: str, **parameters: Any) -> dict:
        """Send a command of the DevTools protocol to the page; return its result."""
        return self._send(method, parameters, sessionId=self._session)

    def _send(self, method: str, parameters: Mapping[str, Any], **more: Any) -> dict:
        self._sent += 1
        command = {"id": self._sent, "method": method, "params": parameters, **more}
        os.write(self._to, json.dumps(command).encode() + b"\0")
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            message = self._receive()
            if message.get("id") == command["id"]:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self.events.append(message)
        raise TimeoutError(f"{method} was not answered within {PATIENCE} s")

    def _receive(self) -> dict:
        while b"\0" not in self._buffer:
            assert self._process.poll() is None, "the browser has ended"
            try:
                self._buffer += os.read(self._from, 1 << 20)
            except BlockingIOError:
                time.sleep(0.005)
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    # --- What a person does -----------------------------------------------------------------------

    def open(self, page: Path, width: int, height: int, **features: str) -> None:
        """Show a file in a window of this size and wait until it is there; forget earlier events.

        `features` are media features that the page is to see, with _ for -.
        """
        wanted = [{"name": n.replace("_", "-"), "value": v} for n, v in features.items()]
        self("Emulation.setEmulatedMedia", features=wanted)
        self(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        self.events.clear()
        self("Page.navigate", url=page.resolve().as_uri())
        self.wait(lambda: self.value("document.readyState") == "complete")

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, (expression, found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, "it did not come to pass"
            time.sleep(0.01)

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        frame = "new Promise(done => requestAnimationFrame(done))"
        for _ in range(2):
            self("Runtime.evaluate", expression=frame, awaitPromise=True)

    def middle(self, selector: str) -> tuple[float, float]:
        """The middle of an element in the window, which is scrolled to it."""
        box = self.value(
            f"""(() => {{
                const element = document.querySelector({json.dumps(selector)});
                element.scrollIntoView({{block: "nearest"}});
                const box = element.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        return tuple(box)

    def drag(self, selector: str, right: float, down: float) -> None:
        """Press the mouse in the middle of an element, move it, let go."""
        x, y = self.middle(selector)
        button = {"button": "left", "buttons": 1, "clickCount": 1}
        self("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **button)
        for step in (0.25, 0.5, 0.75, 1):
            place = {"x": x + step * right, "y": y + step * down}
            self("Input.dispatchMouseEvent", type="mouseMoved", **place, **button)
        self("Input.dispatchMouseEvent", type="mouseReleased", **place, **{**button, "buttons": 0})
        self.settle()

    def click(self, selector: str) -> None:
        """Press the mouse on an element and let go."""
        self.drag(selector, 0, 0)

    def wheel(self, selector: str, amount: float) -> None:
        """Turn the wheel over an element."""
        x, y = self.middle(selector)
        self("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=amount)
        self.settle()

    def touch(
        self, selector: str, *fingers: tuple[tuple[float, float], tuple[float, float]]
    ) -> None:
        """Put fingers down at offsets from the middle of an element, move them, lift them."""
        x, y = self.middle(selector)
        for number, kind in enumerate(("touchStart", "touchMove")):
            points = [{"x": x + f[number][0], "y": y + f[number][1]} for f in fingers]
            self("Input.dispatchTouchEvent", type=kind, touchPoints=points)
        self("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.settle()

    def press(self, key: str) -> None:
        """Press a key and let go; `key` is a JavaScript name such as "ArrowLeft"."""
        text = {"text": key} if len(key) == 1 else {}
        code = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}.get(
            key
        )
        code = {"windowsVirtualKeyCode": code} if code else {}
        self("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **text, **code)
        self("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, **code)
        self.settle()

    def screenshot(self) -> bytes:
        """The window as a PNG."""
        return base64.b64decode(self("Page.captureScreenshot", format="png")["data"])

    # --- What the page did ------------------------------------------------------------------------

    def complaints(self) -> list[str]:
        """Errors and warnings: of the scripts, and of the browser about the page."""
        found = []
        for event in self.events:
            kind, given = event.get("method"), event.get("params", {})
            if kind == "Runtime.exceptionThrown":
                found.append(json.dumps(given["exceptionDetails"]))
            elif kind == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning"):
                found.append(json.dumps(given["args"]))
            elif kind == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
                found.append(json.dumps(given["entry"]))
        return found

    def requests(self) -> list[str]:
        """Every address that the page asked for, data in the page itself left out."""
        asked = [e["params"]["request"]["url"] for e in self.events
                 if e.get("method") == "Network.requestWillBeSent"]  # fmt: skip
        return [url for url in asked if not url.startswith("data:")]
