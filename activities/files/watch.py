"""Changes that programs in a container make to a project's files, as they come.

A watch on each directory, none on what is in `node_modules` and its like: a recursive watcher would take one there
for each of thousands of directories. When the machine's inotify limits (`fs.inotify.max_user_instances`,
`max_user_watches`) are used up, the tree is looked at every two seconds instead, and the log says so. What inotify
can't tell (writes through mmap, a network volume's other clients) is found by a look at everything each minute.
"""

import asyncio
import errno
import time
from collections.abc import AsyncIterator
from pathlib import Path

import structlog

from activities.files.inotify import IGNORED, OVERFLOW, Inotify
from activities.files.threads import BlockingPool
from activities.files.watched_tree import Segments, WatchedTree
from activities.ports import FileChange

ObservedChange = FileChange
"""Path, op and the etag that the file (or link) has now, None after a deletion. Directories are not told of."""

DEBOUNCE_S = 0.2
POLL_S = 2.0
FULL_LOOK_S = 60.0

_log = structlog.get_logger()
_pool = BlockingPool("watch", 4)


async def watch_changes(root: Path, stop: asyncio.Event) -> AsyncIterator[list[ObservedChange]]:
    """Yield what has changed below `root` since the call, in batches, until `stop` is set or the folder is gone.

    Includes the service's own writes: the caller knows their etags. A file that changed several times within a
    batch comes once, as it is now. At most 5,000 directories and 50,000 files are watched.
    """
    try:
        watcher = await _pool.run(lambda: _Watcher(root))
    except (FileNotFoundError, NotADirectoryError):
        _log.warning("files.watch_without_folder", root=str(root))
        return
    try:
        await _pool.run(lambda: watcher.look(everything=True))
        if watcher.tree.cut:
            _log.warning("files.watch_cut", root=str(root))
        while await watcher.something(stop):
            changes = await _pool.run(watcher.look)
            if changes:
                yield changes
    except FileNotFoundError:
        return
    finally:
        watcher.close()


class _Watcher:
    """A tree and its inotify instance, or none and a clock."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._inotify = self._open()
        self.tree = WatchedTree(root, self._inotify)
        self._next_full_look = 0.0

    def _open(self) -> Inotify | None:
        try:
            return Inotify()
        except OSError as error:
            if error.errno not in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}:
                raise
            self._warn(error)
            return None

    def close(self) -> None:
        """Give everything back."""
        self.tree.close()
        if self._inotify is not None:
            self._inotify.close()

    async def something(self, stop: asyncio.Event) -> bool:
        """Wait until it is time to look; False when `stop` was set."""
        loop = asyncio.get_running_loop()
        pause = POLL_S if self._inotify is None else max(0.0, self._next_full_look - time.monotonic())
        noticed = asyncio.Event()
        descriptor = None if self._inotify is None else self._inotify.descriptor
        if descriptor is not None:
            loop.add_reader(descriptor, noticed.set)
        waits = [asyncio.ensure_future(noticed.wait()), asyncio.ensure_future(stop.wait())]
        try:
            await asyncio.wait(waits, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            if noticed.is_set() and descriptor is not None:
                loop.remove_reader(descriptor)
                await asyncio.wait(waits[1:], timeout=DEBOUNCE_S)
        finally:
            for wait in waits:
                wait.cancel()
            if descriptor is not None:
                loop.remove_reader(descriptor)
        if not noticed.is_set():
            self._next_full_look = 0.0
        return not stop.is_set()

    def look(self, *, everything: bool = False) -> list[FileChange]:
        """What has changed; blocking."""
        dirty = self._dirty()
        if everything or dirty is None or self._next_full_look == 0.0:
            dirty = set(self.tree.directories)
            self._next_full_look = time.monotonic() + FULL_LOOK_S
        try:
            return self.tree.look(dirty)
        except OSError as error:
            if self._inotify is None or error.errno not in {errno.ENOSPC, errno.ENOMEM}:
                raise
            self._warn(error)
            self.tree.stop_watching()
            self._inotify.close()
            self._inotify = None
            return self.tree.look(self.tree.directories)

    def _dirty(self) -> set[Segments] | None:
        """The directories with notices, None when all must be looked at."""
        dirty: set[Segments] = set()
        lost = False
        for notice in () if self._inotify is None else self._inotify.notices():
            lost = lost or bool(notice.mask & OVERFLOW)
            segments = self.tree.directory_of(notice.watch)
            if segments is not None:
                dirty.add(segments)
            if notice.mask & IGNORED:
                self.tree.forget_watch(notice.watch)
        return None if lost else dirty

    def _warn(self, error: OSError) -> None:
        _log.warning("files.watch_polls", root=str(self._root), error=str(error), hint="raise fs.inotify.max_user_*")
