"""A page in headless Chromium that can be typed into, resized and asked, by the developer tools' protocol in a pipe."""

import base64
import contextlib
import io
import json
import os
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

# A key's name, and the text that it types.
_CODES = {"Enter": "\r", "Tab": "\t"}


class ScriptError(Exception):
    """An exception within the page."""


class Page:
    """One tab of a browser with a profile of its own.

    Args:
        program: Chromium.
        folder: of the profile; a second page with the same one keeps the first one's storage.
        flags: of the command line.
    """

    def __init__(self, program: str, folder: Path, *flags: str):
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # The browser reads its commands from file descriptor 3 and answers on 4.
        command = ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "bash", program, *flags]
        command += [f"--user-data-dir={folder}", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            command,
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        # Everything that the page requested, and errors that no script caught.
        self.requested: list[str] = []
        self.errors: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None
        with contextlib.suppress(EOFError):
            self._call("Browser.close")
        self._process.wait(timeout=30)
        os.close(self._write)
        os.close(self._read)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._note(answer)
        if "error" in answer:
            raise ScriptError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            read = os.read(self._read, 2**20)
            if not read:
                raise EOFError("the browser has closed")
            self._buffer += read
        line, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(line)

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requested.append(parameters["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(parameters["entry"]["text"])

    def open(self, url: str) -> None:
        """Open a page and wait until its scripts have marked it as ready."""
        self._call("Page.navigate", url="about:blank")
        self._call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && 'ready' in document.documentElement.dataset")

    def run_first(self, script: str) -> None:
        """Run a script in every page that is opened from now on, before its own scripts."""
        self._call("Page.addScriptToEvaluateOnNewDocument", source=script)

    def ask(self, script: str) -> Any:
        """Return the value of an expression in the page; a promise is awaited."""
        found = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            details = found["exceptionDetails"]
            raise ScriptError(details.get("exception", {}).get("description", details["text"]))
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 20) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.ask(script):
            if time.monotonic() > end:
                raise TimeoutError(f"after {seconds} s still not: {script}; errors: {self.errors}")
            time.sleep(0.01)

    def key(self, key: str) -> None:
        """Press and release a key, by its name."""
        text = _CODES.get(key, key if len(key) == 1 else "")
        virtual = {
            "Enter": 13,
            "Tab": 9,
            "Escape": 27,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
        }
        named = {"key": key, "windowsVirtualKeyCode": virtual.get(key, ord(key[0].upper()))}
        self._call("Input.dispatchKeyEvent", type="keyDown", text="" if key == "Tab" else text, **named)
        self._call("Input.dispatchKeyEvent", type="keyUp", **named)

    def type(self, text: str) -> None:
        """Type a text into the element that has the focus."""
        self._call("Input.insertText", text=text)

    def pointer(self, selector: str, click: bool = True) -> None:
        """Move the pointer to the middle of the first element that fits, and click there."""
        at = self.ask(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)});"
            "found.scrollIntoView({block: 'center'}); const box = found.getClientRects()[0];"
            "return [box.left + box.width / 2, box.top + box.height / 2]; })()"
        )
        place = {"x": at[0], "y": at[1]}
        self._call("Input.dispatchMouseEvent", type="mouseMoved", **place)
        if click:
            for kind in ("mousePressed", "mouseReleased"):
                self._call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def drag(self, begin: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag the pointer from one place of the window to another."""
        for kind, (x, y) in (
            ("mouseMoved", begin),
            ("mousePressed", begin),
            ("mouseMoved", end),
            ("mouseReleased", end),
        ):
            pressed = 0 if kind == "mousePressed" or (kind, x) == ("mouseMoved", begin[0]) else 1
            button = "left" if kind != "mouseMoved" or pressed else "none"
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=pressed, clickCount=1)

    def choose_file(self, selector: str, file: Path) -> None:
        """Choose a file for an input element."""
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def download_to(self, folder: Path) -> None:
        """Save files that the page offers."""
        self._call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def resize(self, width: int, height: int, phone: bool = False) -> None:
        """Give the page the size of a window, or of a phone."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def scheme(self, name: str) -> None:
        """Let the system prefer "light" or "dark"."""
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def picture(self) -> np.ndarray:
        """Return a screenshot, (height, width, 3), from 0 to 255."""
        found = self._call("Page.captureScreenshot", format="png")["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(found))).convert("RGB"))
