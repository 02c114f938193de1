"""Headless Chromium, driven by its DevTools protocol over a pipe: clicks and keys as a user's, errors and requests."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SECONDS = 30
"""Longest wait for anything in a page."""

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


def chromium() -> str:
    """The browser; a test that needs it is skipped without."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return found or pytest.skip("needs Chromium")


@contextmanager
def browser(profile: Path, width: int = 1280, height: int = 900) -> "Iterator[Tab]":
    """An open tab; the browser ends with it."""
    ours, theirs = zip(*(_pipe(theirs_reads) for theirs_reads in (True, False)), strict=True)
    command = [chromium(), *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    command += [f"--window-size={width},{height}"]
    # Chromium reads file descriptor 3 and writes 4.
    shell = ["bash", "-c", f'exec "$0" "$@" 3<&{theirs[0]} 4>&{theirs[1]}', *command]
    process = subprocess.Popen(shell, pass_fds=theirs, stderr=subprocess.DEVNULL)
    for descriptor in theirs:
        os.close(descriptor)
    with os.fdopen(ours[0], "wb", 0) as to_browser, os.fdopen(ours[1], "rb", 0) as from_browser:
        try:
            yield Tab(to_browser, from_browser)
        finally:
            process.terminate()
            process.wait(SECONDS)


def _pipe(theirs_reads: bool) -> tuple[int, int]:
    """Our end and the browser's, away from the low numbers that the shell assigns."""
    ends = os.pipe()
    reading, writing = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in ends)
    for end in ends:
        os.close(end)
    return (writing, reading) if theirs_reads else (reading, writing)


class Tab:
    """A tab. ``errors`` are what its console showed; ``requests`` the addresses that it asked for."""

    def __init__(self, to_browser: Any, from_browser: Any):
        self.to_browser, self.from_browser = to_browser, from_browser
        self.session, self.calls, self.unread = {}, 0, b""
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a method of the protocol."""
        self.calls += 1
        message = {"id": self.calls, "method": method, "params": params} | self.session
        self.to_browser.write(json.dumps(message).encode() + b"\0")
        while (received := self._receive()).get("id") != self.calls:
            self._note(received)
        assert "error" not in received, received
        return received["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.unread:
            self.unread += os.read(self.from_browser.fileno(), 2**20) or pytest.fail("the browser has ended")
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.errors.append(json.dumps(params["args"]))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(json.dumps(params["entry"]))

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, script: str) -> Any:
        """The value of an expression, as soon as it is truthy."""
        until = time.monotonic() + SECONDS
        while not (value := self.evaluate(script)):
            assert time.monotonic() < until, f"{script} is {value!r} after {SECONDS} s"
            time.sleep(0.02)
        return value

    def click(self, selector: str) -> None:
        """Click on the middle of an element, as soon as it is there and enabled."""
        self.wait(f"document.querySelector({selector!r})?.matches(':enabled')")
        self.evaluate(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = self.evaluate(f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()")
        where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **where)

    def type(self, selector: str, text: str) -> None:
        """Replace the text of a field by what is typed."""
        self.click(selector)
        self.evaluate(f"document.querySelector({selector!r}).select()")
        self.call("Input.insertText", text=text)

    def press_enter(self) -> None:
        """Press Enter in the field that has the focus."""
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **key)

    def screenshot(self, file: Path) -> None:
        """Write a PNG of what is visible."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
