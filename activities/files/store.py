"""The FileStore on a disk: a folder tree below `projects_root`, which every process that touches files mounts.

projects_root/
├── users/{u}/projects/{p}/     the projects, as the containers see them
└── .studio-store/              the service's own, on the same file system, seen by no container
    ├── locks/                  one file per project, for `flock`
    └── work/                   projects being made or removed: `{u}-{p}-…`
"""

import asyncio
import os
import secrets
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from activities.files import faults
from activities.files.archive import Contents, read_archive
from activities.files.archive_export import export
from activities.files.archive_import import place_members
from activities.files.batch import BatchResult, apply_all_or_none, apply_each
from activities.files.beneath import DIRECTORY, Beneath, sync_file_system
from activities.files.locks import ProjectLocks
from activities.files.reading import ProjectReader
from activities.files.room import DiskRoom
from activities.files.threads import BlockingPool
from activities.files.trees import CopyBudget, Owner, copy_tree, make_folder, move_tree, remove_tree
from activities.files.watch import watch_changes
from activities.files.writing import ProjectWriter, TempFile
from activities.ports import (
    FileChange,
    FileEntry,
    FileListing,
    FileOperation,
    FilePrecondition,
    OpenFile,
    PutFile,
    Tell,
)
from workflows.contracts.errors import TooLargeError
from workflows.contracts.names import ProjectRef, project_subpath

MAX_FILE = 10 * 1024 * 1024
MAX_ARCHIVE = 100 * 1024 * 1024
_PIECE = 256 * 1024
_COPY_WAIT_S = 600.0
_COPY_ENTRIES = 200_000
_NO_PRECONDITION = FilePrecondition()

T = TypeVar("T")


class DiskFileStore:
    """A `FileStore` (activities/ports.py). `owner`: uid and gid of what is written, None: this process's own.

    Several processes may work on the same root. Writers of one project take turns (locks.py); readers never wait.
    `project_disk_mb` bounds what a project may hold before further writes through the store are refused.
    """

    def __init__(
        self,
        projects_root: Path,
        owner: Owner | None,
        *,
        project_disk_mb: int = 2048,
        use_openat2: bool | None = None,
    ) -> None:
        self._projects_root = projects_root.absolute()
        self._owner = owner
        self._disk_bytes = project_disk_mb * 1024 * 1024
        self._beneath = Beneath(use_openat2=use_openat2)
        self._pool = BlockingPool("files")
        self._locks = ProjectLocks(self._own("locks"))
        self._room = DiskRoom(self._disk_bytes)

    def root(self, ref: ProjectRef) -> Path:
        """See `FileStore`."""
        return self._projects_root / project_subpath(ref)

    async def exists(self, ref: ProjectRef) -> bool:
        """See `FileStore`."""
        return await self._pool.run(self.root(ref).is_dir)

    # --- Reading ----------------------------------------------------------------------------------------------

    async def entries(
        self, ref: ProjectRef, path: str = "", *, depth: int = 1, include_all: bool = False
    ) -> FileListing:
        """See `FileStore`."""
        return await self._read(ref, lambda files: files.entries(path, depth=depth, include_all=include_all))

    async def stat(self, ref: ProjectRef, path: str) -> FileEntry:
        """See `FileStore`."""
        return await self._read(ref, lambda files: files.stat(path))

    async def open(self, ref: ProjectRef, path: str) -> OpenFile:
        """See `FileStore`."""
        return _DiskFile(*await self._read(ref, lambda files: files.open(path)), self._pool)

    async def read(self, ref: ProjectRef, path: str, *, limit: int = MAX_FILE) -> bytes:
        """See `FileStore`."""

        def whole(files: ProjectReader) -> bytes:
            descriptor, entry = files.open(path)
            with os.fdopen(descriptor, "rb", closefd=True) as file:
                content = b"" if entry.size > limit else file.read(limit + 1)
            if entry.size > limit or len(content) > limit:
                raise TooLargeError(f"{path!r} is larger than {limit:,} bytes.")
            return content

        return await self._read(ref, whole)

    async def export(self, ref: ProjectRef) -> AsyncGenerator[bytes, None]:
        """See `FileStore`."""
        root = await self._read(ref, lambda files: files.directory())
        pieces = export(root)
        try:
            while (piece := await self._pool.run(lambda: next(pieces, None))) is not None:
                yield piece
        finally:
            await self._pool.run(pieces.close)

    async def watch(self, ref: ProjectRef, stop: asyncio.Event, tell: Tell) -> None:
        """See `FileStore`."""
        await watch_changes(self.root(ref), stop, tell, lambda: self._locks.hold(ref))

    # --- Writing ----------------------------------------------------------------------------------------------

    async def put(
        self,
        ref: ProjectRef,
        path: str,
        content: AsyncIterator[bytes],
        precondition: FilePrecondition,
        *,
        tell: Tell | None = None,
    ) -> FileChange:
        """See `FileStore`. At most 10 MiB."""
        files = await self._writer(ref)
        try:
            await self._pool.run(lambda: files.check_put(path, precondition))
            temp = await self._pool.run(files.new_temp)
            try:
                size = await self._fill(temp.descriptor, content, MAX_FILE, f"{path!r}")
                await self._pool.run(lambda: os.fsync(temp.descriptor))
                await self._take_room(ref, size)
                async with self._locks.hold(ref):
                    change = await self._pool.run(lambda: files.commit(temp, path, precondition))
                    await _told([change], tell)
                    return change
            finally:
                await self._pool.run(lambda: files.discard(temp))
        finally:
            files.close()

    async def delete(
        self,
        ref: ProjectRef,
        path: str,
        *,
        recursive: bool = False,
        precondition: FilePrecondition | None = None,
        tell: Tell | None = None,
    ) -> FileChange:
        """See `FileStore`."""
        wanted = precondition or _NO_PRECONDITION
        async with self._locks.hold(ref):
            change = await self._write(ref, lambda files: files.delete(path, recursive=recursive, precondition=wanted))
            await _told([change], tell)
            return change

    async def move(
        self, ref: ProjectRef, source: str, target: str, *, overwrite: bool = False, tell: Tell | None = None
    ) -> list[FileChange]:
        """See `FileStore`."""
        async with self._locks.hold(ref):
            changes = await self._write(ref, lambda files: files.move(source, target, overwrite=overwrite))
            await _told(changes, tell)
            return changes

    async def batch(
        self, ref: ProjectRef, operations: list[FileOperation], *, atomic: bool, tell: Tell | None = None
    ) -> list[BatchResult]:
        """See `FileStore`."""
        for operation in operations:
            if isinstance(operation, PutFile) and len(operation.content) > MAX_FILE:
                raise TooLargeError(f"{operation.path!r} is larger than {MAX_FILE // 1024 // 1024} MiB.")
        await self._take_room(ref, sum(len(item.content) for item in operations if isinstance(item, PutFile)))

        def apply(files: ProjectWriter) -> list[BatchResult]:
            temps: dict[int, TempFile] = {}
            try:
                for index, operation in enumerate(operations):
                    if isinstance(operation, PutFile):
                        temps[index] = files.new_temp()
                        _write_all(temps[index].descriptor, operation.content)
                results = (apply_all_or_none if atomic else apply_each)(files, operations, temps)
                files.sync()
                return results
            finally:
                for temp in temps.values():
                    files.discard(temp)

        async with self._locks.hold(ref):
            results = await self._write(ref, apply)
            await _told([change for result in results if isinstance(result, list) for change in result], tell)
            return results

    async def import_archive(
        self, ref: ProjectRef, archive: AsyncIterator[bytes], *, tell: Tell | None = None
    ) -> list[FileChange]:
        """See `FileStore`. At most 100 MiB packed; its limits unpacked are those of archive.py."""
        files = await self._writer(ref)
        staged: list[str] = []
        try:
            with tempfile.TemporaryFile(dir=await self._work()) as packed, self._unpacked() as scratch:
                await self._fill(packed.fileno(), archive, MAX_ARCHIVE, "The archive")
                contents = await self._pool.run(lambda: _unpack(packed, scratch, files, staged))
            await self._take_room(ref, contents.size)
            async with self._locks.hold(ref, wait_s=120):
                changes = await self._pool.run(lambda: place_members(files, contents))
                await _told(changes, tell)
                return changes
        finally:
            await self._pool.run(lambda: files.discard_names(staged))
            files.close()

    # --- Life -------------------------------------------------------------------------------------------------

    async def create(self, ref: ProjectRef, source: Path | None) -> None:
        """See `FileStore`. Left out of the copy: what trees.py's `copy_tree` names."""
        await self._work()
        async with self._locks.hold(ref, wait_s=_COPY_WAIT_S):
            await self._pool.run(lambda: self._create(ref, source))

    async def destroy(self, ref: ProjectRef) -> None:
        """See `FileStore`."""
        await self._work()
        async with self._locks.hold(ref, wait_s=_COPY_WAIT_S):
            await self._pool.run(lambda: self._destroy(ref))
            self._locks.forget(ref)
        self._room.forget(ref)

    def _create(self, ref: ProjectRef, source: Path | None) -> None:
        # Under the lock nobody else works on this project: what lies in `work` is a dead process's.
        self._clear_work(ref)
        root = self.root(ref)
        if root.is_dir():
            return
        staging = self._own("work") / f"{ref.user_id}-{ref.project_id}-{secrets.token_hex(8)}"
        try:
            with faults.translated(""):
                if source is None:
                    make_folder(staging, self._owner)
                else:
                    copy_tree(source, staging, self._owner, CopyBudget(self._disk_bytes, _COPY_ENTRIES))
                root.parent.mkdir(parents=True, exist_ok=True)
                _sync_tree(staging)
                staging.rename(root)
                _sync_folder(root.parent)
        except BaseException:
            self._clear_work(ref)
            raise

    def _destroy(self, ref: ProjectRef) -> None:
        with suppress(FileNotFoundError):
            work = self._own("work")
            move_tree(self.root(ref), work / f"{ref.user_id}-{ref.project_id}-{secrets.token_hex(8)}")
        self._clear_work(ref)

    def _clear_work(self, ref: ProjectRef) -> None:
        """Remove what lies in `work` for the project. Deep trees are flattened into a folder of its own."""
        work = os.open(self._own("work"), DIRECTORY)
        try:
            prefix = f"{ref.user_id}-{ref.project_id}-"
            for left in list(self._own("work").glob(f"{prefix}*")):
                remove_tree(work, left.name, spare=f"{prefix}removed-")
        finally:
            os.close(work)

    # --- Parts ------------------------------------------------------------------------------------------------

    def _own(self, name: str) -> Path:
        return self._projects_root / ".studio-store" / name

    async def _work(self) -> Path:
        work = self._own("work")
        await self._pool.run(lambda: work.mkdir(mode=0o700, parents=True, exist_ok=True))
        return work

    def _unpacked(self) -> BinaryIO:
        return tempfile.TemporaryFile(dir=self._own("work"))

    async def _read(self, ref: ProjectRef, call: Callable[[ProjectReader], T]) -> T:
        def opened() -> T:
            with ProjectReader(self.root(ref), self._beneath) as files:
                return call(files)

        return await self._pool.run(opened)

    async def _writer(self, ref: ProjectRef) -> ProjectWriter:
        return await self._pool.run(lambda: ProjectWriter(self.root(ref), self._owner, self._beneath))

    async def _write(self, ref: ProjectRef, call: Callable[[ProjectWriter], T]) -> T:
        """Under the project's lock."""

        def opened() -> T:
            with ProjectWriter(self.root(ref), self._owner, self._beneath) as files:
                return call(files)

        return await self._pool.run(opened)

    async def _take_room(self, ref: ProjectRef, size: int) -> None:
        # An overwrite counts twice until the next measurement, a deletion not at all: a "no" is looked at again.
        if not self._room.knows(ref) or not (self._room.fits(ref, size) or self._room.knows(ref, fresh_s=1.0)):
            # Also the moment to sweep what crashed writers left: it happens now and then, and not at every write.
            async with self._locks.hold(ref):
                await self._write(ref, lambda files: files.sweep())
            await self._pool.run(lambda: self._room.measure(ref, self.root(ref)))
        self._room.take(ref, size)

    async def _fill(self, descriptor: int, content: AsyncIterator[bytes], most: int, what: str) -> int:
        """Write the pieces as they come, a larger piece at a time; their size. Raises `TooLargeError`."""
        total, waiting = 0, bytearray()
        async for piece in content:
            total += len(piece)
            if total > most:
                raise TooLargeError(f"{what} is larger than {most // 1024 // 1024} MiB.")
            waiting += piece
            if len(waiting) >= _PIECE:
                await self._flush(descriptor, waiting)
        await self._flush(descriptor, waiting)
        return total

    async def _flush(self, descriptor: int, waiting: bytearray) -> None:
        data = bytes(waiting)
        waiting.clear()
        await self._pool.run(lambda: _write_all(descriptor, data))


class _DiskFile:
    """An `OpenFile` over one descriptor."""

    def __init__(self, descriptor: int, entry: FileEntry, pool: BlockingPool) -> None:
        self.entry = entry
        self._descriptor = descriptor
        self._pool = pool
        self._reading = asyncio.Lock()

    async def chunks(self, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """See `OpenFile`. Ends early when the file was cut in place meanwhile."""
        end = self.entry.size if end is None else min(end, self.entry.size)
        while start < end:
            piece = await self._pool.run(partial(os.pread, self._descriptor, min(_PIECE, end - start), start))
            if not piece:
                return
            start += len(piece)
            yield piece

    async def close(self) -> None:
        """See `OpenFile`."""
        os.close(self._descriptor)


async def _told(changes: list[FileChange], tell: Tell | None) -> None:
    if tell is not None and changes:
        await tell(changes)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    with faults.translated("the file"):
        while view:
            view = view[os.write(descriptor, view) :]


def _unpack(packed: BinaryIO, scratch: BinaryIO, files: ProjectWriter, staged: list[str]) -> Contents:
    def stage(pieces: Iterator[bytes]) -> str:
        temp = files.new_temp()
        staged.append(temp.name)
        try:
            for piece in pieces:
                _write_all(temp.descriptor, piece)
        finally:
            os.close(temp.descriptor)
        return temp.name

    packed.seek(0)
    return read_archive(packed, scratch, stage)


def _sync_tree(folder: Path) -> None:
    descriptor = os.open(folder, DIRECTORY)
    try:
        sync_file_system(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
