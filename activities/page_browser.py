"""Chromium for one page: a new profile, no privileges, no environment of ours, and one way out.

The page is a user's own code, so its browser is taken for hostile: where this process is root it runs as `nobody`, as
anybody it is kept to its own folder and the gateway (`activities/page_confinement.py`), and a process between the two
(`activities/page_visitor.py`) listens to it.
"""

import asyncio
import os
import pwd
import shlex
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import structlog
from pydantic import ValidationError

from activities import page_confinement
from activities.addresses import Resolver
from activities.page_gateway import PageGateway
from activities.page_view import PageView, Visit
from activities.tools.tool import PreviewAddress

PROGRAMS: Final = ("chromium", "chromium-browser", "google-chrome")
VISITOR: Final = (sys.executable, "-m", "activities.page_visitor")

_ROOT: Final = Path(__file__).parents[1]
_USER: Final = "nobody"
_MAX_ANSWER: Final = 4 * 1024 * 1024
_DRIVER_MEMORY_MB: Final = 512
_DRAIN_S: Final = 2.0
_REMOVALS: Final = 20
_REMOVAL_PAUSE_S: Final = 0.1

log = structlog.get_logger()


class BrowserError(Exception):
    """There is nothing to look at; the message says why."""


@dataclass(frozen=True)
class Look:
    """How to look at a page: `wait_s` after it has loaded, in a window of so many pixels."""

    wait_s: float = 2.0
    width: int = 1280
    height: int = 800


def find_browser() -> str | None:
    """The Chromium that is installed on this machine, or None."""
    return next((path for path in map(shutil.which, PROGRAMS) if path), None)


async def look_at(program: str, address: PreviewAddress, path: str, look: Look, resolver: Resolver) -> PageView:
    """Open the path of the preview in a browser of its own, which is gone when this returns or is cancelled.

    Takes as long as the page lets it: bound it. Raises `BrowserError`.
    """
    _warn_of_what_is_missing()
    async with PageGateway(address.url, resolver) as gateway:
        folder = await asyncio.to_thread(_prepare, program, gateway.port)
        try:
            visit = Visit(
                preview=address.url,
                token=address.token,
                path=path,
                gateway_port=gateway.port,
                starter=str(folder / "browser"),
                profile=str(folder / "profile"),
                wait_s=look.wait_s,
                width=look.width,
                height=look.height,
            )
            view = await _visit(visit, folder)
            _explain(view, gateway)
        finally:
            await _remove(folder)
    if view.error is not None:
        found = [finding.text for finding in view.findings]
        raise BrowserError("\n".join([f"The page can't be opened: {view.error}", *found]))
    return view


def _explain(view: PageView, gateway: PageGateway) -> None:
    """Say of the requests that the gateway refused why it did."""
    for finding in view.findings:
        reason = gateway.refusals.get(finding.target or "")
        if reason is not None:
            finding.text += f" ({reason})"


async def _visit(visit: Visit, folder: Path) -> PageView:
    process = await asyncio.create_subprocess_exec(
        *VISITOR,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": str(_ROOT),
            "LANG": "C.UTF-8",
            "NODE_OPTIONS": f"--max-old-space-size={_DRIVER_MEMORY_MB}",
        },
        start_new_session=True,
    )
    try:
        answer = await _exchange(process, visit.model_dump_json().encode() + b"\n")
    finally:
        _kill(process.pid)
        _kill_browser(folder)
        await _reap(process)
    try:
        return PageView.model_validate_json(answer)
    except ValidationError as error:
        log.warning("page_browser.no_answer", size=len(answer))
        raise BrowserError(
            "The browser ended without an answer: the page takes too much memory, or prints too much."
        ) from error


async def _exchange(process: asyncio.subprocess.Process, question: bytes) -> bytes:
    """What the visitor answers; stdin stays open, for it ends when that closes."""
    if process.stdin is None or process.stdout is None:
        raise AssertionError("both are pipes")
    with suppress(ConnectionError):
        process.stdin.write(question)
        await process.stdin.drain()
    answer = bytearray()
    while len(answer) <= _MAX_ANSWER and (piece := await process.stdout.read(_MAX_ANSWER)):
        answer += piece
    return bytes(answer)


# --- processes and folders --------------------------------------------------------------------------------------


@cache
def _warn_of_what_is_missing() -> None:
    """Say once of this machine what it can't keep a browser from."""
    missing = page_confinement.missing_confinement()
    if missing:
        log.warning("page_browser.not_confined", missing=missing, hint="Landlock: Linux 6.12, and seccomp that lets it")


def _prepare(program: str, port: int) -> Path:
    """A folder with the profile and the program that starts the browser in it, as who it is to be."""
    as_who = _as_unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="studio-page-"))
    profile = folder / "profile"
    confined = [sys.executable, "-I", "-S", page_confinement.__file__, str(profile), str(port), program]
    command = shlex.join([*confined, *as_who, program])
    profile.mkdir(mode=0o700)
    if os.geteuid() == 0:
        folder.chmod(0o711)
        entry = pwd.getpwnam(_USER)
        os.chown(profile, entry.pw_uid, entry.pw_gid)
    starter = folder / "browser"
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


def _kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _kill_browser(folder: Path) -> None:
    """Kill the browser with all its processes: the driver gave it a group of its own."""
    with suppress(OSError, ValueError):
        pid = int((folder / "pid").read_text())
        if str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():  # and nobody who got its number since
            _kill(pid)


async def _reap(process: asyncio.subprocess.Process) -> None:
    """Wait for what was killed, whatever comes: this ends at once. What it still said is read, to free its pipe."""
    while process.returncode is None:
        with suppress(asyncio.CancelledError):
            await process.wait()
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_S):
            while process.stdout is not None and await process.stdout.read(_MAX_ANSWER):
                pass


async def _remove(folder: Path) -> None:
    """Remove the folder; a dying browser may still write into it for a moment."""
    for _ in range(_REMOVALS):
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        if not await asyncio.to_thread(folder.exists):
            return
        await asyncio.sleep(_REMOVAL_PAUSE_S)
