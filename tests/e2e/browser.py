"""Headless Chromium, as a user's browser. `*.localhost` is this machine by Chromium's own rule."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, Locator, Page, Request, expect, sync_playwright

from tests.needs import BROWSERS

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
)
TIMEOUT_MS = 20_000
LOADS = 3


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with a new profile of its own."""
    program = next(path for path in map(shutil.which, BROWSERS) if path)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*FLAGS], timeout=TIMEOUT_MS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def window(browser: Browser) -> Iterator[BrowserContext]:
    """A fresh set of cookies and pages."""
    context = browser.new_context(viewport={"width": 1024, "height": 640})
    context.set_default_timeout(TIMEOUT_MS)
    expect.set_options(timeout=TIMEOUT_MS)
    try:
        yield context
    finally:
        context.close()


class Tab:
    """A page that bears with a restless machine.

    Chromium drops what it loads whenever an interface of this machine comes or goes, and other tests' containers
    bring some. Then, and only then, the page is loaded again.
    """

    def __init__(self, context: BrowserContext) -> None:
        self.page = context.new_page()
        self._dropped = False
        self.page.on("requestfailed", self._note)

    def _note(self, request: Request) -> None:
        self._dropped = self._dropped or "ERR_NETWORK_CHANGED" in (request.failure or "")

    def open(self, address: str, heading: str) -> None:
        """Go there; the page shows this heading."""
        self.page.goto(address)
        self.shows(self.page.get_by_role("heading", level=1), heading)

    def shows(self, where: Locator, text: str) -> None:
        """The text is there, or comes."""
        for _ in range(LOADS - 1):
            try:
                expect(where).to_have_text(text, timeout=TIMEOUT_MS / 2)
            except AssertionError:
                if not self._dropped:
                    raise
                self._dropped = False
                self.page.reload()
            else:
                return
        expect(where).to_have_text(text)


def shoot(page: Page, folder: Path, name: str) -> None:
    """Keep what the page looks like."""
    page.screenshot(path=folder / f"{name}.png")


def mark(page: Page, awaited: str) -> list[str]:
    """Give the page a state that a load would end, and have it note when this text shows; the addresses loaded."""
    loads: list[str] = []
    page.on("load", lambda loaded: loads.append(loaded.url))
    page.get_by_role("button").click()
    page.get_by_role("button").click()
    page.evaluate(
        """text => {
            window.mark = 'alive'
            new MutationObserver(() => { if (document.body.innerText.includes(text)) window.shownAt ??= Date.now() })
                .observe(document.body, { childList: true, subtree: true, characterData: true })
        }""",
        awaited,
    )
    return loads
