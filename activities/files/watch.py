"""Changes that programs in a container make to a project's files, as they come.

A watch on each directory, none on what is in `node_modules` and its like: a recursive watcher would take one there
for each of thousands of directories. When the machine's inotify limits (`fs.inotify.max_user_instances`,
`max_user_watches`) are used up, the tree is looked at every two seconds instead, and the log says so. What inotify
can't tell (writes through mmap, a network volume's other clients) is found by a look at everything each minute.
"""

import asyncio
import errno
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import structlog

from activities.files.inotify import IGNORED, OVERFLOW, Inotify
from activities.files.threads import BlockingPool
from activities.files.watched_tree import Segments, WatchedTree
from activities.ports import FileChange, Tell

DEBOUNCE_S = 0.2
POLL_S = 2.0
FULL_LOOK_S = 60.0

_log = structlog.get_logger()
_pool = BlockingPool("watch", 4)


async def watch_changes(
    root: Path, stop: asyncio.Event, tell: Tell, hold: Callable[[], AbstractAsyncContextManager[None]]
) -> None:
    """Have told what has changed below `root` since the call, in batches, until `stop` is set or the folder is gone.

    `hold` keeps the service's own writers away, who tell of what they write before they are done: at each look the log
    knows all of theirs, which is in the batches, too, and can be known by its etag. A file that changed several times
    within a batch comes once, as it is now, with its etag (None after a deletion); directories are not told of. What
    `tell` fails to tell comes again, as it is then. At most 5,000 directories and 50,000 files are watched.
    """
    try:
        watcher = await _pool.run(lambda: _Watcher(root))
    except (FileNotFoundError, NotADirectoryError):
        _log.warning("files.watch_without_folder", root=str(root))
        return
    try:
        await _pool.run(watcher.look)
        if watcher.tree.cut:
            _log.warning("files.watch_cut", root=str(root))
        while await watcher.something(stop):
            if await _pool.run(watcher.notice):
                await _look(watcher, tell, hold)
    except FileNotFoundError:
        return
    finally:
        watcher.close()


async def _look(watcher: "_Watcher", tell: Tell, hold: Callable[[], AbstractAsyncContextManager[None]]) -> None:
    changes: list[FileChange] = []
    try:
        async with hold():
            changes = await _pool.run(watcher.look)
            if changes:
                await tell(changes)
    except FileNotFoundError:
        raise
    except Exception as error:  # noqa: BLE001 -- the watch goes on: what couldn't be told is found again
        _log.warning("files.changes_not_told", root=str(watcher.root), error=repr(error))
        watcher.look_again(changes)


class _Watcher:
    """A tree and its inotify instance, or none and a clock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._inotify = self._open()
        self.tree = WatchedTree(root, self._inotify)
        self._dirty: set[Segments] = {()}
        self._next_full_look = time.monotonic() + FULL_LOOK_S

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
        polls = self._inotify is None or bool(self._dirty)
        pause = POLL_S if polls else max(0.0, self._next_full_look - time.monotonic())
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
        return not stop.is_set()

    def notice(self) -> bool:
        """Whether there is something to look at. Blocking; a look at everything is made here, and tells nothing."""
        if self._lost_notices() or self._inotify is None or time.monotonic() >= self._next_full_look:
            self._dirty |= self.tree.differing()
            self._next_full_look = time.monotonic() + FULL_LOOK_S
        return bool(self._dirty)

    def look(self) -> list[FileChange]:
        """What has changed; blocking."""
        changes = self.tree.look(self._dirty)
        self._dirty = set()
        if self._inotify is not None and self.tree.refused is not None:
            self._warn(self.tree.refused)
            self._inotify.close()
            self._inotify = None
        return changes

    def look_again(self, changes: list[FileChange]) -> None:
        """Find these once more, soon."""
        self._dirty |= self.tree.take_back(changes)

    def _lost_notices(self) -> bool:
        """Note the directories in which something happened; True when there may be others."""
        lost = False
        for notice in () if self._inotify is None else self._inotify.notices():
            lost = lost or bool(notice.mask & OVERFLOW)
            segments = self.tree.directory_of(notice.watch)
            if segments is not None:
                self._dirty.add(segments)
            if notice.mask & IGNORED:
                self.tree.forget_watch(notice.watch)
        return lost

    def _warn(self, error: OSError) -> None:
        _log.warning("files.watch_polls", root=str(self.root), error=str(error), hint="raise fs.inotify.max_user_*")
