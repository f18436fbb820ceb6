"""Chromium for one page: a new profile, no privileges, no environment of ours, and one way out.

The page is a user's own code, so its browser is taken for hostile: where this process is root it runs as `nobody`.
"""

import asyncio
import os
import pwd
import shlex
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
from playwright.async_api import BrowserContext, Error, Page, Playwright, async_playwright

PROGRAMS: Final = ("chromium", "chromium-browser", "google-chrome")

_USER: Final = "nobody"
_LAUNCH_TIMEOUT_MS: Final = 20_000
_CLOSE_TIMEOUT_S: Final = 5.0
_FLAGS: Final = (
    "--no-sandbox",  # its own needs rights that a container doesn't have; the user and the gateway stand in
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-breakpad",
    "--proxy-bypass-list=<-loopback>",  # by itself it goes around a proxy to reach this machine
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # names are the gateway's to look up
    "--webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",  # the same, by its older name
)

log = structlog.get_logger()


class BrowserError(Exception):
    """The browser can't be used; the message says why."""


@dataclass(frozen=True)
class Window:
    """How large the page is shown, in pixels."""

    width: int = 1280
    height: int = 800


def find_browser() -> str | None:
    """The Chromium that is installed on this machine, or None."""
    return next((path for path in map(shutil.which, PROGRAMS) if path), None)


@asynccontextmanager
async def open_page(program: str, gateway_port: int, window: Window) -> AsyncIterator[Page]:
    """An empty page of a browser of its own, which goes with the block. Raises `BrowserError` when none starts."""
    folder = await asyncio.to_thread(_prepare, program)
    try:
        async with _playwright() as playwright, _context(playwright, folder, gateway_port, window) as context:
            yield context.pages[0] if context.pages else await context.new_page()
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


@asynccontextmanager
async def _playwright() -> AsyncIterator[Playwright]:
    starting = asyncio.create_task(async_playwright().start())
    try:
        playwright = await asyncio.shield(starting)
    except asyncio.CancelledError:
        # Half started it would be left behind: its process is nobody's before `start` returns.
        await _bounded((await starting).stop())
        raise
    try:
        yield playwright
    finally:
        await _bounded(playwright.stop())


@asynccontextmanager
async def _context(
    playwright: Playwright, folder: Path, gateway_port: int, window: Window
) -> AsyncIterator[BrowserContext]:
    profile = folder / "profile"
    try:
        context = await playwright.chromium.launch_persistent_context(
            profile,
            executable_path=folder / "browser",
            args=[*_FLAGS, f"--proxy-server=socks5://127.0.0.1:{gateway_port}"],
            env={"PATH": os.defpath, "HOME": str(profile), "TMPDIR": str(profile), "LANG": "C.UTF-8"},
            viewport={"width": window.width, "height": window.height},
            accept_downloads=False,
            service_workers="block",
            handle_sigint=False,
            handle_sigterm=False,
            handle_sighup=False,
            timeout=_LAUNCH_TIMEOUT_MS,
        )
    except Error as error:
        raise BrowserError(f"Chromium doesn't start: {error.message.splitlines()[0][:300]}") from error
    try:
        yield context
    finally:
        if not await _bounded(context.close()):
            await asyncio.to_thread(_kill, folder)


async def _bounded(closing: Awaitable[Any]) -> bool:
    """Whether it was done in time, and well."""
    with suppress(TimeoutError, Error):
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await closing
            return True
    return False


# --- processes --------------------------------------------------------------------------------------------------


def _prepare(program: str) -> Path:
    """A folder with the profile and the program that starts the browser in it, as who it is to be."""
    folder = Path(tempfile.mkdtemp(prefix="studio-page-"))
    profile = folder / "profile"
    profile.mkdir(mode=0o700)
    if os.geteuid() == 0:
        folder.chmod(0o711)
        entry = pwd.getpwnam(_USER)
        os.chown(profile, entry.pw_uid, entry.pw_gid)
    starter = folder / "browser"
    command = shlex.join([*_as_unprivileged(), program])
    # The process id is the browser's own, from here through every exec. Nobody but us can change the note of it.
    starter.write_text(f'#!/bin/sh\necho $$ > {shlex.quote(str(folder / "pid"))}\nexec {command} "$@"\n')
    starter.chmod(0o700)
    return folder


def _as_unprivileged() -> list[str]:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        if os.geteuid() == 0:
            raise BrowserError("Chromium isn't run as root, and `setpriv` (util-linux) is missing.")
        return []
    words = [setpriv, "--no-new-privs", "--pdeathsig", "KILL"]
    if os.geteuid() == 0:
        entry = pwd.getpwnam(_USER)
        words += ["--reuid", str(entry.pw_uid), "--regid", str(entry.pw_gid), "--clear-groups"]
    return [*words, "--"]


def _kill(folder: Path) -> None:
    """Kill a browser that didn't close, with all its processes: Playwright gave it a group of its own."""
    with suppress(OSError, ValueError):
        os.killpg(int((folder / "pid").read_text()), signal.SIGKILL)
        log.warning("page_browser.killed")
