"""One visit to a page of a preview: what it shows, what it complains of, and a picture of it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, TypeVar
from urllib.parse import urlsplit, urlunsplit

from playwright.async_api import ConsoleMessage, Error, Page, Request, Response
from playwright.async_api import TimeoutError as PlaywrightTimeoutError

from activities.addresses import Resolver
from activities.page_browser import BrowserError, Window, open_page
from activities.page_gateway import PageGateway
from activities.tools.tool import PreviewAddress

MAX_TEXT: Final = 8_000
MAX_IMAGE: Final = 1024 * 1024

_MAX_FINDINGS: Final = 40
_MAX_FINDING: Final = 400
_LOAD_TIMEOUT_MS: Final = 20_000
_QUESTION_S: Final = 8.0
_ROUTE_S: Final = 6.0
_ROUTE_PAUSE_S: Final = 0.5
_NOT_THERE_YET: Final = {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}
_TEXT: Final = f"() => [document.title, (document.body ? document.body.innerText : '').slice(0, {MAX_TEXT + 1})]"
_OF_A_REQUEST: Final = "Failed to load resource"
"""What the console says of a failed request, without its address; the request itself is told with it."""
_JPEG_QUALITIES: Final = (70, 35)

Answer = TypeVar("Answer")


@dataclass
class PageView:
    """What was seen. `status` None: the page was left before it was known. `text` has one character too many when
    there is more. `findings`: console errors and warnings, exceptions and failed requests, in order; `dropped` more.
    `left_for`: the page led away from the preview, to this address; then nothing of it is shown.
    """

    path: str = ""
    status: int | None = None
    title: str = ""
    text: str = ""
    image: bytes | None = None
    left_for: str | None = None
    notes: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    dropped: int = 0

    def find(self, finding: str) -> None:
        """Keep it, cut to a line's length, while there is room."""
        if len(self.findings) < _MAX_FINDINGS:
            self.findings.append(clean(finding)[:_MAX_FINDING])
        else:
            self.dropped += 1


def clean(text: str) -> str:
    """Text of a page as any database takes it."""
    return text.encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


async def visit(
    program: str, address: PreviewAddress, path: str, *, wait_s: float, window: Window, resolver: Resolver
) -> PageView:
    """Open the path of the preview in a browser of its own and look `wait_s` after it has loaded.

    Raises `BrowserError` when there is nothing to look at. The token is in nothing of what is returned or raised.
    """
    async with PageGateway(address.url, resolver) as gateway, open_page(program, gateway.port, window) as page:
        view = PageView()
        _listen(page, view, gateway, address.token)
        try:
            view.status = await _open(page, address, path, view)
        except Error as error:
            reason = error.message.splitlines()[0].replace(address.token, "…")[:_MAX_FINDING]
            raise BrowserError(
                "\n".join([f"The page can't be opened: {reason}", *view.findings, *_refused(gateway)])
            ) from error
        await asyncio.sleep(wait_s)
        await _look(page, address, view)
        return view


def _listen(page: Page, view: PageView, gateway: PageGateway, token: str) -> None:
    def find(finding: str) -> None:
        view.find(finding.replace(token, "…"))

    def on_console(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not message.text.startswith(_OF_A_REQUEST):
            find(f"console {message.type}: {message.text}")

    def on_exception(error: Error) -> None:
        find(f"uncaught exception: {error.stack or error.message}")

    def on_failure(request: Request) -> None:
        if request.failure == "net::ERR_ABORTED":
            return  # the page itself went elsewhere
        why = gateway.refusals.get(_host_port(request.url)) or request.failure or "no answer"
        find(f"failed request: {request.method} {request.url}: {why}")

    def on_response(response: Response) -> None:
        if response.status >= HTTPStatus.BAD_REQUEST and not response.request.is_navigation_request():
            find(f"failed request: {response.request.method} {response.url}: status {response.status}")

    page.on("console", on_console)
    page.on("pageerror", on_exception)
    page.on("requestfailed", on_failure)
    page.on("response", on_response)
    page.on("popup", lambda popup: asyncio.ensure_future(_answer(popup.close)))


def _host_port(url: str) -> str:
    with suppress(ValueError):
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "ws": 80}.get(parts.scheme, 443)
        return f"{parts.hostname}:{port}"
    return ""


def _refused(gateway: PageGateway) -> list[str]:
    return [f"not connected: {target}: {why}" for target, why in list(gateway.refusals.items())[:5]]


async def _open(page: Page, address: PreviewAddress, path: str, view: PageView) -> int | None:
    """Go there; the route of a server that has just started may take a moment. The status of the last answer."""
    scheme, host, *_ = urlsplit(address.url)
    _, _, plain, query, fragment = urlsplit(f"{scheme}://{host}{path}")
    entry = f"{query}&token={address.token}" if query else f"token={address.token}"
    ends = asyncio.get_running_loop().time() + _ROUTE_S
    status = await _go(page, urlunsplit((scheme, host, plain, entry, fragment)), view)
    while status in _NOT_THERE_YET and asyncio.get_running_loop().time() < ends:
        await asyncio.sleep(_ROUTE_PAUSE_S)
        view.findings.clear()
        status = await _go(page, f"{address.url}{path}", view)
    return status


async def _go(page: Page, url: str, view: PageView) -> int | None:
    try:
        response = await page.goto(url, wait_until="load", timeout=_LOAD_TIMEOUT_MS)
    except PlaywrightTimeoutError:
        view.notes.append(f"It hadn't loaded everything within {_LOAD_TIMEOUT_MS // 1000} s.")
        return None
    return None if response is None else response.status


async def _look(page: Page, address: PreviewAddress, view: PageView) -> None:
    here = urlsplit(page.url.replace(address.token, "…"))
    if here[:2] != urlsplit(address.url)[:2]:
        view.left_for = clean(here.geturl())[:_MAX_FINDING]
        return
    view.path = clean(urlunsplit(("", "", *here[2:])))[:_MAX_FINDING] or "/"
    seen = await _answer(lambda: page.evaluate(_TEXT))
    if seen is None:
        view.notes.append("Its scripts keep it too busy to be read.")
    elif isinstance(seen, list) and [type(item) for item in seen] == [str, str]:
        view.title, view.text = clean(seen[0])[:_MAX_FINDING], clean(seen[1])[: MAX_TEXT + 1]
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
