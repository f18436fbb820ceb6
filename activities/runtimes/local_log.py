"""Reading a local dev server's log, two files of a bounded size, while it is being written."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO, Final

_PIECE: Final = 64 * 1024
_TAIL_BYTES: Final = 1024 * 1024
_POLL_S: Final = 0.1


async def read_log(folder: Path, *, tail: int, follow: bool, alive: Callable[[], bool]) -> AsyncIterator[bytes]:
    """The last `tail` lines (at most 1 MiB); with `follow`, what comes until it isn't alive any more."""
    try:
        file: BinaryIO = (folder / "log").open("rb")
    except FileNotFoundError:
        return
    try:
        older = folder / "log.1"
        before = _end_of(older) if older.exists() else b""
        lines = (before + file.read()).splitlines(keepends=True)
        if text := b"".join(lines[max(0, len(lines) - tail) :]):
            yield text
        while follow:
            last = not alive()
            while piece := file.read(_PIECE):
                yield piece
            if last:
                return
            file = _newest(folder, file)
            await asyncio.sleep(_POLL_S)
    finally:
        file.close()


def _end_of(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read()


def _newest(folder: Path, file: BinaryIO) -> BinaryIO:
    """The file that is written now: ours may have been put aside."""
    try:
        newest = (folder / "log").open("rb")
    except FileNotFoundError:
        return file
    if newest.fileno() != file.fileno() and _identity(newest) != _identity(file):
        file.close()
        return newest
    newest.close()
    return file


def _identity(file: BinaryIO) -> tuple[int, int]:
    status = Path(f"/proc/self/fd/{file.fileno()}").stat()
    return status.st_dev, status.st_ino
