"""The page in a browser: no error, no request, nothing wider than a phone, and a box that switches conditions.

Chromium is driven through a pipe (its DevTools protocol, messages end in a zero byte), so nothing listens on a port.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from perturbdiff.report.writing import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60

pytestmark = pytest.mark.slow


class Browser:
    """A headless Chromium with one page, and all that it reported."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._number, self._rest = 0, b""
        self.events: list[dict] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self(f"{domain}.enable")

    _session: str | None = None

    def __call__(self, method: str, **parameters):
        """Ask, and wait for the answer; what else arrives is kept in `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, path: Path) -> None:
        """Load a file and wait until it is all there."""
        self.events.clear()
        self("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())
        self.run("new Promise(done => setTimeout(done, 100))")

    def run(self, expression: str):
        """The value of an expression in the page."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def look(self, width: int, height: int = 900, *, scheme: str = "light") -> None:
        """Take on a size and a colour scheme."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self("Emulation.setDeviceMetricsOverride", **screen)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def of(self, *methods: str) -> list[dict]:
        """The parameters of all events of some kinds."""
        return [event["params"] for event in self.events if event.get("method") in methods]

    def screenshot(self, path: Path) -> None:
        """Of the whole page."""
        size = self("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _next(self) -> dict:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._back], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser says nothing"
            read = os.read(self._back, 1 << 16)
            assert read, "the browser has ended"
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextmanager
def started(folder: Path):
    """Chromium with a profile of its own in a folder; ended afterwards."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("there is no Chromium on this machine: the page cannot be opened in a browser")
    to_browser, to = os.pipe()
    back, from_browser = os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += ["--remote-debugging-pipe", f"--user-data-dir={folder}", "--disable-background-networking"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND"]
    # the protocol is spoken on the descriptors 3 and 4
    shell = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
    process = subprocess.Popen(
        ["bash", "-c", shell, program, *options],
        pass_fds=(to_browser, from_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        yield Browser(to, back)
    finally:
        process.terminate()
        process.wait(PATIENCE)
        os.close(to)
        os.close(back)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with started(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture(scope="module")
def written(evaluation_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    write_report(evaluation_folder, out)
    return out


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "light"), (390, "dark"), (1280, "dark")])
def test_the_page_opens_without_an_error_and_asks_for_nothing(browser, written, width, scheme):
    browser.look(width, scheme=scheme)
    browser.open(written)
    assert browser.of("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded") == []
    assert [one["request"]["url"] for one in browser.of("Network.requestWillBeSent")] == [written.as_uri()]


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_screen_but_what_scrolls_by_itself(browser, written, width):
    browser.look(width)
    browser.open(written)
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    wider = "[...document.querySelectorAll('svg[role=img], p, h1, h2, h3, h4, li, figure, select')]"
    wider += ".filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).length"
    assert browser.run(wider) == 0


def test_on_a_phone_the_headline_shows_model_baseline_and_ceiling_without_scrolling(browser, written):
    browser.look(390)
    browser.open(written)
    right = "Math.max(...[...document.querySelectorAll('#glance td')].map(e => e.getBoundingClientRect().right))"
    assert browser.run(right) <= 390


def test_the_dark_page_is_dark_with_light_texts_in_figures_too(browser, written):
    text, colours = "#radar ~ figure svg[role=img] text[style*=ink]", {}
    for scheme in ("light", "dark"):
        browser.look(1280, scheme=scheme)
        browser.open(written)
        colours[scheme] = [
            browser.run("getComputedStyle(document.body).backgroundColor"),
            browser.run("getComputedStyle(document.body).color"),
            browser.run(f"getComputedStyle(document.querySelector({text!r})).fill"),
        ]
    brightness = {scheme: [_brightness(one) for one in found] for scheme, found in colours.items()}
    assert brightness["light"][0] > 240 > 80 > max(brightness["light"][1:])
    assert brightness["dark"][0] < 40 < 160 < min(brightness["dark"][1:])


def test_the_box_shows_one_condition_at_a_time(browser, written):
    browser.look(1280)
    browser.open(written)
    shown = "[...document.querySelectorAll('.condition')].filter(e => e.offsetHeight > 0).map(e => e.id)"
    assert browser.run(shown) == ["condition-1"]
    browser.run(
        "const s = document.getElementById('condition'); s.value = 'condition-3'; s.dispatchEvent(new Event('change'))"
    )
    assert browser.run(shown) == ["condition-3"]


def test_it_prints_in_light_colours_without_navigation(browser, written):
    browser.look(1280, scheme="dark")
    browser.open(written)
    pdf = base64.b64decode(browser("Page.printToPDF", preferCSSPageSize=True)["data"])
    assert pdf.startswith(b"%PDF")
    browser("Emulation.setEmulatedMedia", media="print")
    assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert _brightness(browser.run("getComputedStyle(document.body).color")) < 80
    browser("Emulation.setEmulatedMedia", media="")


def _brightness(colour):
    """The mean of the channels of rgb(...)."""
    channels = [float(one) for one in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    return sum(channels) / len(channels)
