"""One writer at a time per project: within this process and across the processes of this host.

A lock is `flock(2)` on a file beside the projects, where no container reaches it. It covers the short part of a
write only (look, compare, rename, tell the log), not the upload; and a watcher's look with the telling of it. What it
can't hold off: programs in the container, which know no lock; between the last look and the rename they have some
microseconds. `flock` counts across hosts where the volume's file system says so (NFSv4, CephFS do).
"""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from weakref import WeakValueDictionary

from workflows.contracts.errors import UnavailableError
from workflows.contracts.names import ProjectRef

_POLL_S = 0.01


class ProjectLocks:
    """Gives out the locks, whose files are made below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._local: WeakValueDictionary[ProjectRef, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def hold(self, ref: ProjectRef, *, wait_s: float = 30.0) -> AsyncIterator[None]:
        """Hold the project's lock. Raises `UnavailableError` when it isn't free within `wait_s`."""
        lock = self._local.setdefault(ref, asyncio.Lock())
        try:
            async with asyncio.timeout(wait_s) as limit, lock:
                descriptor = await self._acquire(ref)
                limit.reschedule(None)
                try:
                    yield
                finally:
                    os.close(descriptor)
        except TimeoutError:
            if not limit.expired():
                raise
            raise UnavailableError("Another change of this project's files takes too long.") from None

    def forget(self, ref: ProjectRef) -> None:
        """Remove the lock's file; only while holding it."""
        self._path(ref).unlink(missing_ok=True)

    async def _acquire(self, ref: ProjectRef) -> int:
        while (descriptor := self._try(ref)) is None:  # noqa: ASYNC110 -- another process can't set an event here
            await asyncio.sleep(_POLL_S)
        return descriptor

    def _try(self, ref: ProjectRef) -> int | None:
        path = self._path(ref)
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The file may have been removed by a `forget` between the two calls: then this lock is nobody's.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(descriptor)
        return None

    def _path(self, ref: ProjectRef) -> Path:
        return self._folder / f"{ref.user_id}-{ref.project_id}.lock"
