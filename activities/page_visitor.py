"""One visit to a page of a preview, as a process of its own: `python -m activities.page_visitor`.

What a page prints is as large and as much as it likes, and goes through the memory of whoever listens. So that is
this process, bounded, and not the worker. A `Visit` comes as a line on stdin, a `PageView` goes to stdout, both as
JSON; when stdin closes, whoever asked is gone, and so is this.
"""

import asyncio
import os
import resource
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Final, TypeVar
from urllib.parse import urlsplit, urlunsplit

from playwright.async_api import ConsoleMessage, Error, Page, Request, Response, async_playwright
from playwright.async_api import TimeoutError as PlaywrightTimeoutError

from activities.page_view import MAX_FINDING, MAX_FINDINGS, MAX_IMAGE, MAX_TEXT, Finding, PageView, Visit

_MEMORY: Final = 1024 * 1024 * 1024
_LAUNCH_TIMEOUT_MS: Final = 20_000
_LOAD_TIMEOUT_MS: Final = 15_000
_QUESTION_S: Final = 5.0
_ROUTE_S: Final = 6.0
_ROUTE_PAUSE_S: Final = 0.5
_NOT_THERE_YET: Final = {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}
_TEXT: Final = f"() => [document.title, (document.body ? document.body.innerText : '').slice(0, {MAX_TEXT + 1})]"
_OF_A_REQUEST: Final = "Failed to load resource"
"""What the console says of a failed request, without its address; the request itself is told with it."""
_JPEG_QUALITIES: Final = (70, 35)
_FLAGS: Final = (
    "--no-sandbox",  # its own needs rights that a container doesn't have; the user and the gateway stand in
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-breakpad",
    "--js-flags=--max-old-space-size=512",
    "--proxy-bypass-list=<-loopback>",  # by itself it goes around a proxy to reach this machine
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # names are the gateway's to look up
    "--webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",  # the same, by its older name
)

Answer = TypeVar("Answer")


async def visit(request: Visit) -> PageView:
    """Open the page, wait, look. The token is in nothing of what is returned."""
    view = PageView()
    try:
        async with _page(request) as page:
            _Listener(page, view, request.token)
            view.status = await _open(page, request, view)
            await asyncio.sleep(request.wait_s)
            await _look(page, request, view)
    except Error as error:
        view.error = _clean(error.message.replace(request.token, "…").splitlines()[0])[:MAX_FINDING]
    return view


@asynccontextmanager
async def _page(request: Visit) -> AsyncIterator[Page]:
    async with async_playwright() as playwright:
        # From here on, when all that is to be started by this process has been.
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        try:
            context = await playwright.chromium.launch_persistent_context(
                request.profile,
                executable_path=request.starter,
                args=[*_FLAGS, f"--proxy-server=socks5://127.0.0.1:{request.gateway_port}"],
                env={"PATH": os.defpath, "HOME": request.profile, "TMPDIR": request.profile, "LANG": "C.UTF-8"},
                viewport={"width": request.width, "height": request.height},
                accept_downloads=False,
                service_workers="block",
                timeout=_LAUNCH_TIMEOUT_MS,
            )
        except Error as error:
            raise Error(f"Chromium doesn't start: {error.message}") from error
        yield context.pages[0] if context.pages else await context.new_page()


# --- what it complains of ---------------------------------------------------------------------------------------


class _Listener:
    """Keeps what the page complains of. Stops listening to scripts when it has enough: they may never stop."""

    def __init__(self, page: Page, view: PageView, token: str) -> None:
        self._page = page
        self._view = view
        self._token = token
        page.on("console", self._on_console)
        page.on("pageerror", self._on_exception)
        page.on("requestfailed", self._on_failure)
        page.on("response", self._on_response)
        page.on("popup", self._on_popup)

    def _find(self, text: str, target: str | None = None) -> None:
        if len(self._view.findings) < MAX_FINDINGS:
            found = _clean(text[: 2 * MAX_FINDING].replace(self._token, "…"))[:MAX_FINDING]
            self._view.findings.append(Finding(text=found, target=target))
        elif not self._view.more_findings:
            self._view.more_findings = True
            self._page.remove_listener("console", self._on_console)
            self._page.remove_listener("pageerror", self._on_exception)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not message.text.startswith(_OF_A_REQUEST):
            self._find(f"console {message.type}: {message.text}")

    def _on_exception(self, error: Error) -> None:
        self._find(f"uncaught exception: {error.stack or error.message}")

    def _on_failure(self, failed: Request) -> None:
        if failed.failure != "net::ERR_ABORTED":  # then the page itself went elsewhere
            why = failed.failure or "no answer"
            self._find(f"failed request: {failed.method} {failed.url}: {why}", _host_port(failed.url))

    def _on_response(self, response: Response) -> None:
        if response.status >= HTTPStatus.BAD_REQUEST and not response.request.is_navigation_request():
            self._find(f"failed request: {response.request.method} {response.url}: status {response.status}")

    async def _on_popup(self, popup: Page) -> None:
        await _answer(popup.close)


def _host_port(url: str) -> str | None:
    with suppress(ValueError):
        parts = urlsplit(url)
        return f"{parts.hostname}:{parts.port or {'http': 80, 'ws': 80}.get(parts.scheme, 443)}"
    return None


def _clean(text: str) -> str:
    """Text of a page as any database takes it."""
    return text.encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


# --- going there and looking ------------------------------------------------------------------------------------


async def _open(page: Page, request: Visit, view: PageView) -> int | None:
    """Go there; the route of a server that has just started may take a moment. The status of the last answer."""
    scheme, host, path, query, fragment = urlsplit(f"{request.preview}{request.path}")
    entry = f"{query}&token={request.token}" if query else f"token={request.token}"
    ends = asyncio.get_running_loop().time() + _ROUTE_S
    status = await _go(page, urlunsplit((scheme, host, path, entry, fragment)), view)
    while status in _NOT_THERE_YET and asyncio.get_running_loop().time() < ends:
        await asyncio.sleep(_ROUTE_PAUSE_S)
        view.findings.clear()
        status = await _go(page, f"{request.preview}{request.path}", view)
    return status


async def _go(page: Page, url: str, view: PageView) -> int | None:
    try:
        response = await page.goto(url, wait_until="load", timeout=_LOAD_TIMEOUT_MS)
    except PlaywrightTimeoutError:
        view.notes.append(f"It hadn't loaded everything within {_LOAD_TIMEOUT_MS // 1000} s.")
        return None
    return None if response is None else response.status


async def _look(page: Page, request: Visit, view: PageView) -> None:
    here = urlsplit(page.url.replace(request.token, "…"))
    if here[:2] != urlsplit(request.preview)[:2]:
        view.left_for = _clean(here.geturl())[:MAX_FINDING]
        return
    view.path = _clean(urlunsplit(("", "", *here[2:])))[:MAX_FINDING] or "/"
    seen = await _answer(lambda: page.evaluate(_TEXT))
    if seen is None:
        view.notes.append("Its scripts keep it too busy to be read.")
    elif isinstance(seen, list) and [type(item) for item in seen] == [str, str]:
        view.title, view.text = _clean(seen[0][:MAX_FINDING]), _clean(seen[1][: MAX_TEXT + 1])
    view.image = await _picture(page)
    if view.image is None:
        view.notes.append("No picture of it could be taken.")


async def _picture(page: Page) -> bytes | None:
    image = await _answer(lambda: page.screenshot(type="png"))
    for quality in _JPEG_QUALITIES:
        if image is None or len(image) <= MAX_IMAGE:
            break
        image = await _answer(lambda quality=quality: page.screenshot(type="jpeg", quality=quality))  # type: ignore[misc]  # a bound default
    return image if image is not None and len(image) <= MAX_IMAGE else None


async def _answer(question: Callable[[], Awaitable[Answer]]) -> Answer | None:
    """What the page answers; None when it doesn't in time: it may be in an endless loop, or gone."""
    with suppress(TimeoutError, Error):
        async with asyncio.timeout(_QUESTION_S):
            return await question()
    return None


# --- the process ------------------------------------------------------------------------------------------------


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> None:
    """Answer one `Visit`, and end at once: whoever asked ends the browser."""
    request = Visit.model_validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()

    async def answer() -> None:
        view = await visit(request)
        sys.stdout.buffer.write(view.model_dump_json().encode())
        sys.stdout.buffer.flush()

    asyncio.run(answer())


if __name__ == "__main__":
    main()
