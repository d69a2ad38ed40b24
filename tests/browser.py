"""A page as Chromium shows it. The DevTools protocol goes through a pipe, so no package is needed for it."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 120.0  # seconds for one answer; a machine may be busy
PHONE = 400  # pixels
FLAGS = (
    "--headless",
    "--no-sandbox",  # which needs rights that containers seldom have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Nothing leaves the machine, so a page that asks for something from elsewhere fails at once and everywhere.
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",  # commands come from file descriptor 3, answers go to 4
)
_LOOK = """(async () => {
    if (document.readyState !== "complete") await new Promise(done => addEventListener("load", done));
    const images = [...document.images];
    await Promise.allSettled(images.map(image => image.decode()));
    return {
        images: images.map(image => ({
            name: image.alt || image.src.slice(0, 80),
            size: [image.naturalWidth, image.naturalHeight],
            shown: [image.clientWidth, image.clientHeight],
        })),
        text: document.body ? document.body.innerText : "",
        width: document.documentElement.scrollWidth,
        room: document.documentElement.clientWidth,
    };
})()"""


@dataclass
class Sight:
    """What opening a page brought to light.

    Args:
        faults: errors and warnings of its console, and exceptions of its scripts.
        requests: addresses that it asked for, itself first; what it brings along (`data:`) is none.
        images: by picture its name, its size, and the size in which it is shown, in pixels; 0 where it is broken.
        text: that can be read.
        width, room, window: of what is drawn, of the place for it, and of the window, pixels; there is more place than
            window where a phone shrinks a page that does not say that it suits phones.
    """

    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""
    width: int = 0
    room: int = 0
    window: int = 0

    def wrong(self, file: Path, images: int) -> list[str]:
        """Why the page is not whole, alone, and as wide as its window; `images` is how many pictures it has."""
        wrong = [*self.faults, *(f"asks for {url}" for url in self.requests if url != file.resolve().as_uri())]
        if len(self.images) != images:
            wrong.append(f"has {len(self.images)} pictures in place of {images}")
        for image in self.images:
            (width, height), (shown, high) = image["size"], image["shown"]
            if not width or not shown:
                wrong.append(f"{image['name']} is not shown")
            elif abs(shown * height / width - high) >= 2:
                wrong.append(f"{image['name']} is distorted: {shown} x {high}")
        if self.width > self.room:
            wrong.append(f"is {self.width} pixels wide where {self.room} are free")
        if self.room > self.window:
            wrong.append(f"is laid out for {self.room} pixels in a window of {self.window}")
        return wrong


class Browser:
    """A running Chromium, which `browser` starts."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin and process.stdout
        self._commands, self._answers = process.stdin, process.stdout
        self._rest, self._number = b"", 0
        self._events: list[dict[str, Any]] = []

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The answer to a command; what happens meanwhile is kept for `look`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._commands.write(json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            answer = self._message(method)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._events.append(answer)

    def look(self, file: Path, width: int = 1280, picture: Path | None = None) -> Sight:
        """Open a file in a window so many pixels wide, and note what comes of it.

        Args:
            picture: where to draw the whole page as PNG.
        """
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        page = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable", page)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", page, **size)
        self._events.clear()
        refused = self.ask("Page.navigate", page, url=file.resolve().as_uri()).get("errorText")
        assert refused is None, f"{file}: {refused}"
        answer = self.ask("Runtime.evaluate", page, expression=_LOOK, awaitPromise=True, returnByValue=True)
        sight = Sight(**answer["result"]["value"], window=width)
        for event in self._events:
            self._note(event["method"], event["params"], sight)
        if picture is not None:
            shot = self.ask("Page.captureScreenshot", page, captureBeyondViewport=True)
            picture.write_bytes(base64.b64decode(shot["data"]))
        self.ask("Target.closeTarget", targetId=target)
        return sight

    @staticmethod
    def _note(method: str, event: dict[str, Any], sight: Sight) -> None:
        if method == "Network.requestWillBeSent" and not event["request"]["url"].startswith("data:"):
            sight.requests.append(event["request"]["url"])
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("warning", "error"):
            sight.faults.append(event["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("warning", "error", "assert"):
            sight.faults.append(" ".join(str(a.get("value", a.get("description"))) for a in event["args"]))
        elif method == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            sight.faults.append(details.get("exception", {}).get("description", details["text"]))

    def _message(self, wanted: str) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, end - time.monotonic()))
            part = os.read(self._answers.fileno(), 1 << 20) if ready else b""
            assert part, f"Chromium {'ended' if ready else f'was silent for {PATIENCE:g} s'}, asked for: {wanted}"
            self._rest += part
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A Chromium without a screen that keeps its files in `folder`; where there is none, the test is skipped."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"needs a browser ({', '.join(NAMES)}), and none is on the path (apt-get install chromium)")
    shell = ("sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null', "sh")
    command = [*shell, program, *FLAGS, f"--user-data-dir={folder}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, bufsize=0, **pipes) as process:
        try:
            running = Browser(process)
            yield running
            running.ask("Browser.close")
            process.wait(PATIENCE)
        finally:
            process.kill()
