"""`view_page`: the project's own preview as a visitor sees it, and what its console says."""

import asyncio
from typing import Annotated, ClassVar, Final

from pydantic import Field, StringConstraints

from activities.addresses import PublicResolver, Resolver
from activities.page_browser import PROGRAMS, BrowserError, Look, find_browser, look_at
from activities.page_view import MAX_TEXT, PageView
from activities.tools.arguments import ToolArguments
from activities.tools.bounds import bounded
from activities.tools.dev_server import describe
from activities.tools.tool import Tool, ToolContext, ToolFailure, ToolKind, ToolResult
from workflows.contracts.dev_servers import DevServerState

_TIMEOUT_S: Final = 60.0
_AT_ONCE: Final = 2
_PLACE_TIMEOUT_S: Final = 120.0

PagePath = Annotated[str, StringConstraints(pattern=r"^/[^\s\\]*$", max_length=2000)]


class ViewPageArguments(ToolArguments):
    """What to look at."""

    path: PagePath = Field("/", description="Path in the preview, beginning with `/`; a query may follow.")
    wait_s: float = Field(2.0, ge=0, le=10, description="Seconds to wait after it has loaded, before looking.")
    width: int = Field(1280, ge=320, le=1920, description="Width of the window in pixels.")
    height: int = Field(800, ge=240, le=1600, description="Height of the window in pixels.")


class ViewPage(Tool[ViewPageArguments]):
    """A browser of its own for each call. `program`: of the browser; for tests, that have none or another."""

    name: ClassVar = "view_page"
    description: ClassVar = (
        "Open a page of the project's own preview in a browser, starting the dev server when it doesn't run. Returns "
        "title, HTTP status, visible text, console errors and warnings, uncaught exceptions and failed requests; a "
        "screenshot is kept for the project's owner. Use it to check that a change works."
    )
    kind: ClassVar = ToolKind.LOOK
    arguments: ClassVar = ViewPageArguments

    def __init__(self, *, resolver: Resolver | None = None, program: str | None = None) -> None:
        self._resolver = resolver or PublicResolver()
        self._program = program
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def run(self, context: ToolContext, arguments: ViewPageArguments) -> ToolResult:
        """See `Tool`."""
        program = self._program or find_browser()
        if program is None:
            raise ToolFailure(
                f"No browser is installed where this service runs ({', '.join(PROGRAMS)}), so pages can't be looked "
                "at. Check by other means: the dev server's logs, a build, tests."
            )
        server = await context.dev_server.start()
        if server.state != DevServerState.RUNNING:
            return ToolResult(f"There is no page to look at.\n{describe(server)}", failed=True)
        await self._take_place()
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                view = await self._visit(program, context, arguments)
        except TimeoutError:
            raise ToolFailure(f"The page could not be looked at within {_TIMEOUT_S:g} s.") from None
        finally:
            self._places.release()
        return ToolResult(_present(view), failed=view.left_for is not None, image=view.image)

    async def _take_place(self) -> None:
        try:
            async with asyncio.timeout(_PLACE_TIMEOUT_S):
                await self._places.acquire()
        except TimeoutError:
            raise ToolFailure("Too many pages are being looked at just now. Try again later.") from None

    async def _visit(self, program: str, context: ToolContext, arguments: ViewPageArguments) -> PageView:
        address = await context.preview.open()
        look = Look(arguments.wait_s, arguments.width, arguments.height)
        try:
            return await look_at(program, address, arguments.path, look, self._resolver)
        except BrowserError as error:
            raise ToolFailure(str(error)) from error


def _present(view: PageView) -> str:
    if view.left_for is not None:
        lines = [f"The page led away from the preview, to {view.left_for}. Only the preview itself is looked at."]
    else:
        lines = [
            f"Title: {view.title or '(none)'}",
            f"Path: {view.path}",
            f"HTTP status: {'unknown' if view.status is None else view.status}",
            *view.notes,
            "",
            "Visible text:",
            bounded(view.text.strip(), MAX_TEXT, cut="end") or "(none)",
        ]
    lines += ["", "Console errors and warnings, exceptions, failed requests:"]
    lines += [f"- {finding.text}" for finding in view.findings] or ["(none)"]
    if view.more_findings:
        lines.append("- and more, which were not kept")
    if view.image is not None:
        lines += ["", "A screenshot was taken; the project's owner can see it, too."]
    return bounded("\n".join(lines))


TOOL = ViewPage()
