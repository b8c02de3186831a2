"""The browser, and the pages that tests look at in it."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any, ClassVar

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Error,
    Page,
    expect,
    sync_playwright,
)

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
#: Where bars do not glide, a step is one frame and not fifteen.
STILL = {"reduced_motion": "reduce"}
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 860}, **STILL},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 860}},
    "phone": {"color_scheme": "light", **PHONE, **STILL},
}

expect.set_options(timeout=20_000)


@contextlib.contextmanager
def started() -> Iterator[Browser]:
    """Start the browser of this machine, once for all tests."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "no browser: apt-get install chromium libatomic1, or name one in CHROMIUM"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=[
                "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--host-resolver-rules=MAP pictures.lan 127.0.0.1, MAP evil.example 127.0.0.1",
            ],
        )  # fmt: skip
        yield browser
        browser.close()


class Eyes:
    """Pages of one service; what a browser complains about fails the test.

    A window of one's own takes a browser longer to open than most tests take in it. So the first
    page is handed on to the next test that looks at the same service in the same way, without all
    that it remembers; not after a failure, which may have left a key down or a dialog open.
    """

    _left: ClassVar[dict[str, tuple[str, Page]]] = {}  #: of each look: its service, and its page

    def __init__(self, browser: Browser, url: str, **look: Any) -> None:
        self.url = url
        self.errors: list[str] = []
        self.expected: list[str] = []  #: parts of complaints that belong to the test
        self._look = json.dumps(look)
        of, page = self._left.pop(self._look, ("", None))
        if page and of != url:
            page.context.close()
            page = None
        self._first = page
        self.context: BrowserContext = (
            page.context if page else browser.new_context(base_url=url, **look)
        )
        self.context.set_default_timeout(20_000)
        self._opened: list[Page] = []

    def open(self, path: str = "/") -> Page:
        page = None if self._opened else self._first
        page = self._look_at(page or self.context.new_page())
        page.goto(path)
        return page

    def beside(self, page: Page) -> Page:
        """What ``page`` shows in one more tab, opened from it: it takes no process of its own."""
        with page.expect_popup() as opened:
            page.evaluate("void open(location.href)")
        other = self._look_at(opened.value)
        other.wait_for_load_state()
        return other

    def _look_at(self, page: Page) -> Page:
        self._opened.append(page)
        page.on("console", self._said)
        page.on("pageerror", self._broke)
        return page

    def _said(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _broke(self, error: Error) -> None:
        self.errors.append(str(error))

    def close(self) -> None:
        left = [e for e in self.errors if not any(part in e for part in self.expected)]
        failed = left or hasattr(sys, "last_value")  # which pytest sets when a test has failed
        try:
            if failed or not self._forgotten():
                self.context.close()
        except Error:
            self.context.close()
        assert left == []

    def _forgotten(self) -> bool:
        """Make the first page like a new one; False when it cannot be handed on."""
        first = self._opened[0] if self._opened else self._first
        if first is None or first.is_closed() or not first.url.startswith(self.url):
            return False
        for page in self.context.pages:
            if page is not first:
                page.close()
        first.unroute_all()
        first.remove_listener("console", self._said)
        first.remove_listener("pageerror", self._broke)
        first.evaluate("localStorage.clear(), sessionStorage.clear()")
        self.context.clear_cookies()
        first.mouse.move(0, 0)
        first.goto("/static/icon.svg")  # of the same site, so that its process is kept
        viewport = json.loads(self._look).get("viewport", first.viewport_size)
        if first.viewport_size != viewport:
            first.set_viewport_size(viewport)
        self._left[self._look] = self.url, first
        return True
