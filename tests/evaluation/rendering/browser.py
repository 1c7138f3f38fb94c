"""A headless Chromium that tests drive as a person does: keys, clicks, screens and paper.

It is spoken to through a pipe, in the browser's own protocol (JSON messages that end with a zero byte).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

_KEYS = {"Enter": (13, "\r"), " ": (32, " "), "Tab": (9, ""), "PageDown": (34, ""), "Home": (36, "")}
_KEYS |= {"ArrowRight": (39, ""), "ArrowDown": (40, "")}
_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--proxy-server=127.0.0.1:9",  # nothing is fetched
    "--force-device-scale-factor=1",
    "--remote-debugging-pipe",
)


class Page:
    """An open page."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser = browser
        self.session = session

    def command(self, method: str, **given: Any) -> dict[str, Any]:
        return self.browser.command(method, self.session, **given)

    def run(self, script: str) -> Any:
        """The value of an expression, or what a promise gives."""
        found = self.command("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str) -> None:
        code, text = _KEYS[key]
        given = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
        self.command("Input.dispatchKeyEvent", type="keyDown", text=text, **given)
        self.command("Input.dispatchKeyEvent", type="keyUp", **given)

    def click(self, element: str) -> None:
        """Press the mouse on the middle of an element, given as an expression; it must lie on top there."""
        script = f"""(() => {{ const element = {element};
          element.scrollIntoView({{ block: "center", inline: "center" }});
          const box = element.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
          return [x, y, element.contains(document.elementFromPoint(x, y))]; }})()"""
        x, y, on_top = self.run(script)
        assert on_top, f"{element} is covered, or off the screen"
        for kind in ("mousePressed", "mouseReleased"):
            self.command("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Wait, after what is done inside, until the page that it opened has loaded.

        A script that is sent before that may meet the old page as it goes, and is then answered with an error.
        """
        self.browser.events.clear()
        yield
        while self.browser.wait_for("Page.frameNavigated", self.session)["frame"]["url"] == "about:blank":
            pass
        self.browser.wait_for("Page.loadEventFired", self.session)

    def print(self) -> bytes:
        return base64.b64decode(self.command("Page.printToPDF", preferCSSPageSize=True)["data"])


class Browser:
    """A running Chromium."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._number, self._rest = 0, b""
        self.events: deque[dict[str, Any]] = deque()

    def command(self, method: str, session: str | None = None, **given: Any) -> dict[str, Any]:
        """Send a command, and give back what is answered."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": given}
        message |= {} if session is None else {"sessionId": session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)

    def wait_for(self, method: str, session: str) -> dict[str, Any]:
        """What the next event of this kind says; the events before it are dropped."""
        while True:
            event = self.events.popleft() if self.events else self._receive()
            if (event.get("method"), event.get("sessionId")) == (method, session):
                return dict(event["params"])

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._read], [], [], 120)[0], "the browser is silent"
            found = os.read(self._read, 1 << 20)
            assert found, "the browser ended"
            self._rest += found
        message, self._rest = self._rest.split(b"\0", 1)
        return dict(json.loads(message))

    def open(self, path: Path, width: int = 1280, *, dark: bool = False, before: str = "") -> Page:
        """A page in a tab of its own, loaded; ``before`` is a script that runs before those of the page."""
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        page.command("Page.enable")
        page.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.command("Emulation.setEmulatedMedia", features=[scheme])
        page.command("Page.addScriptToEvaluateOnNewDocument", source=before)
        with page.loading():
            page.command("Page.navigate", url=path.as_uri())
        return page


@contextmanager
def start_browser(profile: Path) -> Iterator[Browser]:
    assert CHROMIUM is not None
    to_browser, from_browser = os.pipe(), os.pipe()
    ends = to_browser[0], from_browser[1]
    # Chromium reads from 3 and writes to 4.
    connected = ["bash", "-c", 'exec "${@:3}" 3<&"$1" 4>&"$2"', "bash", *map(str, ends)]
    process = subprocess.Popen(
        [*connected, CHROMIUM, *_ARGUMENTS, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=ends,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in ends:
        os.close(end)
    try:
        browser = Browser(to_browser[1], from_browser[0])
        yield browser
        browser.command("Browser.close")
    finally:
        os.close(to_browser[1])
        os.close(from_browser[0])
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
