"""ripgrep over a project's folder on this host, trusted for nothing but where to look.

The folder belongs to whatever runs in the project's container, and ripgrep opens files by their names: a program that
exchanges a file for a link at the right moment could have it read another's files, or the host's. So it only points
to lines; what is shown is read through the FileStore, which resolves beneath the project, and a line that isn't there
as ripgrep had it is left out. No ignore files and no configuration are read: their text would come back in messages.
"""

import asyncio
import os
import re
import resource
import shutil
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from activities.tools.bounds import readable
from activities.tools.tool import ToolFailure

MAX_MATCHES = 200
MAX_COLUMNS = 300
"""Characters of a line that are compared and shown."""

_MAX_OUTPUT = 4 * 1024 * 1024
_MAX_ERRORS = 4_000
_MEMORY = 1024 * 1024 * 1024
_PIECE = 64 * 1024
_USUAL = (0, 1)
"""Exit codes: found, not found."""
_MATCH = re.compile(rb"(?P<path>[^\0\n]+)\0(?P<offset>\d+):(?P<text>[^\n]*)")
_CUT = re.compile(rb" \[\.\.\. (omitted end of long line|\d+ more match(es)?)\]$")
_LEFT_OUT = ("node_modules", ".git", "/.studio")


@dataclass(frozen=True)
class Query:
    """What to look for. `path`: relative to the project's folder, `""` for all of it. `glob`: of the files' paths."""

    pattern: str
    path: str
    glob: str | None
    ignore_case: bool


@dataclass(frozen=True)
class Match:
    """Where ripgrep has seen a line: its file, the byte at which it begins, and as much of it as it printed."""

    path: str
    offset: int
    text: bytes

    def agrees(self, line: bytes) -> bool:
        """Whether the line is the one that was seen."""
        text = self.text.removesuffix(b"\r")
        if text == line.removesuffix(b"\r"):
            return True
        cut = _CUT.search(text)
        return cut is not None and line.startswith(text[: cut.start()])


@dataclass(frozen=True)
class Matches:
    """Sorted by path. `complete`: these are all; otherwise a bound or the time has ended the search."""

    items: Sequence[Match]
    complete: bool


async def find(root: Path, query: Query, *, within_s: float) -> Matches:
    """At most 200 matching lines. Raises `ToolFailure` when ripgrep isn't there or refuses the pattern or glob."""
    program = shutil.which("rg")
    if program is None:
        raise ToolFailure("ripgrep (rg) is not installed where the service runs; search with grep by run_command.")
    try:
        process = await asyncio.create_subprocess_exec(
            *(program, *_options(query)), stdin=DEVNULL, stdout=PIPE, stderr=PIPE, cwd=root, env={"LC_ALL": "C"}
        )
    except FileNotFoundError:
        raise ToolFailure("This project has no files.") from None
    try:
        with suppress(ProcessLookupError):  # a line of any length would be held in memory
            resource.prlimit(process.pid, resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        output, complete = await _output(process, within_s)
        found = [_match(item) for item in _MATCH.finditer(output)]
        if complete and not found and await process.wait() not in _USUAL:
            complete = False  # unless it says why: killed at its memory's bound, or it may not read a file
            if errors := await _errors(process):
                raise ToolFailure(f"ripgrep refuses the search: {errors}")
    finally:
        await _end(process)
    return Matches(found[:MAX_MATCHES], complete and len(found) <= MAX_MATCHES)


def _options(query: Query) -> list[str]:
    globs = ([query.glob] if query.glob else []) + [f"!{name}" for name in _LEFT_OUT]
    return [
        "--no-config",
        "--no-ignore",
        "--hidden",
        "--no-follow",
        "--one-file-system",
        "--no-messages",
        "--no-mmap",
        "--encoding=none",
        "--max-filesize=10M",
        f"--max-columns={MAX_COLUMNS}",
        "--max-columns-preview",
        f"--max-count={MAX_MATCHES + 1}",
        "--no-heading",
        "--with-filename",
        "--null",
        "--no-line-number",
        "--byte-offset",
        "--color=never",
        "--sort=path",
        *(f"--glob={glob}" for glob in globs),
        *(["--ignore-case"] if query.ignore_case else []),
        f"--regexp={query.pattern}",
        "--",
        f"./{query.path}",
    ]


async def _output(process: Process, within_s: float) -> tuple[bytes, bool]:
    """Whole lines of what it prints, and whether it came to its end within the bounds."""
    if process.stdout is None:
        raise AssertionError("its output is a pipe")
    output = bytearray()
    lines = 0
    ended = False
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while len(output) < _MAX_OUTPUT and lines <= MAX_MATCHES and not ended:
                piece = await process.stdout.read(_PIECE)
                output += piece
                lines += piece.count(b"\n")
                ended = not piece
    return bytes(output[: output.rfind(b"\n") + 1]), ended


async def _errors(process: Process) -> str:
    if process.stderr is None:
        raise AssertionError("its errors are a pipe")
    return readable(await process.stderr.read(_MAX_ERRORS)).strip()


async def _end(process: Process) -> None:
    """Kill it, and wait until it is gone, also when the caller is being cancelled."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)  # Popen's own kill may take the exit code from under asyncio's watcher
    ending = asyncio.ensure_future(process.communicate())  # its end isn't seen before its pipes are empty
    while not ending.done():
        try:
            await asyncio.wait([ending])
        except asyncio.CancelledError:
            continue  # killed already: this ends at once, and the cancel is raised by the block that we leave


def _match(item: re.Match[bytes]) -> Match:
    path = item["path"].decode(errors="replace").removeprefix("./")
    return Match(path, int(item["offset"]), item["text"])
