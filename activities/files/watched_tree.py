"""What a project's tree looked like when last looked at, and what has changed since. Blocking.

inotify only says in which directories something happened; what happened is found by looking. So lost and merged
notices, moved and replaced directories and plain polling all end in the same, right answer.
"""

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from activities.files.beneath import DIRECTORY, MAX_DEPTH, Beneath
from activities.files.entries import etag_of, is_text
from activities.files.inotify import Inotify
from activities.ports import FileChange
from workflows.contracts.errors import StudioError
from workflows.contracts.names import STUDIO_DIRECTORY

IGNORED = {"node_modules", ".git", ".venv", "__pycache__", ".next"}
"""Directories that tools fill by the thousand: never looked at, never watched."""
MAX_DIRECTORIES = 5_000
MAX_ENTRIES = 50_000

Segments = tuple[str, ...]


@dataclass(frozen=True)
class _Seen:
    """A directory as just seen: files with their etags, directories with their inodes."""

    segments: Segments
    files: dict[str, str]
    folders: dict[str, int]


class WatchedTree:
    """The picture of one project, with a watch on each directory as long as `inotify` is given."""

    def __init__(self, root: Path, inotify: Inotify | None) -> None:
        self._path = root
        self._root = os.open(root, DIRECTORY)
        self._beneath = Beneath()
        self._inotify = inotify
        self._files: dict[Segments, dict[str, str]] = {}
        self._folders: dict[Segments, dict[str, int]] = {}
        self._watches: dict[Segments, int] = {}
        self._watched: dict[int, Segments] = {}
        self._count = 0
        self.cut = False
        """Whether there is more than `MAX_DIRECTORIES` or `MAX_ENTRIES`: the rest is not watched."""
        self.refused: OSError | None = None
        """Why there is no watch any more, when the kernel had no more of them."""

    def close(self) -> None:
        """Close the root."""
        os.close(self._root)

    @property
    def directories(self) -> list[Segments]:
        """All directories that are looked at."""
        return [(), *(segments for segments in self._files if segments)]

    def directory_of(self, watch: int) -> Segments | None:
        """The directory of a watch, None when it isn't ours any more."""
        return self._watched.get(watch)

    def forget_watch(self, watch: int) -> None:
        """The kernel ended the watch."""
        segments = self._watched.pop(watch, None)
        if segments is not None and self._watches.get(segments) == watch:
            del self._watches[segments]

    def differing(self) -> set[Segments]:
        """The directories that are not as last seen, or have no watch. Leaves the picture as it is.

        Raises `FileNotFoundError` when the project is gone.
        """
        self._check_root()
        return {segments for segments in self.directories if self._differs(segments)}

    def _differs(self, segments: Segments) -> bool:
        if self._inotify is not None and segments not in self._watches:
            return True
        seen = self._list(segments)
        return seen is None or (seen.files, seen.folders) != (self._files.get(segments), self._folders.get(segments))

    def take_back(self, changes: Iterable[FileChange]) -> set[Segments]:
        """Make the picture one in which these are still to be seen; the directories to look at for that."""
        directories = set()
        for change in changes:
            *folder, name = change.path.split("/")
            files = self._files.setdefault(tuple(folder), {})
            before = len(files)
            if change.op == "created":
                files.pop(name, None)
            else:
                files[name] = ""  # nobody's etag
            self._count += len(files) - before
            directories.add(tuple(folder))
        return directories

    def look(self, directories: Iterable[Segments]) -> list[FileChange]:
        """Look at these directories again, and into new ones below them: what changed, by path.

        Raises `FileNotFoundError` when the project is gone.
        """
        self._check_root()
        changes: dict[str, FileChange] = {}
        found: list[_Seen] = []
        for segments in sorted(set(directories)):
            seen = self._list(segments)
            if seen is None:
                self._drop(segments, changes)
            else:
                found.append(seen)
        # What went away first: a moved directory keeps its watch's number at its new place.
        for seen in found:
            for name, inode in list(self._folders.get(seen.segments, {}).items()):
                if seen.folders.get(name) != inode:
                    self._drop((*seen.segments, name), changes)
        # A directory that was replaced is seen again from its parent, with a watch on the new one.
        found = [seen for seen in found if not seen.segments or seen.segments in self._files]
        while found:
            found += self._take(found.pop(), changes)
        return sorted(changes.values(), key=lambda change: change.path)

    def _check_root(self) -> None:
        if not os.path.samestat(os.fstat(self._root), os.stat(self._path)):  # noqa: PTH116 -- beside a descriptor's
            raise FileNotFoundError("the project's folder is gone")

    def _take(self, seen: "_Seen", changes: dict[str, FileChange]) -> list["_Seen"]:
        """Make it the picture; what is to be seen in the directories that are new there."""
        self._compare(seen.segments, seen.files, changes)
        self._folders[seen.segments] = seen.folders
        new = [(*seen.segments, name) for name in seen.folders if (*seen.segments, name) not in self._files]
        return [below for folder in new if not self._full(folder) and (below := self._list(folder)) is not None]

    def _full(self, segments: Segments) -> bool:
        full = len(self._files) >= MAX_DIRECTORIES or self._count >= MAX_ENTRIES or len(segments) > MAX_DEPTH
        self.cut = self.cut or full
        return full

    def _list(self, segments: Segments) -> "_Seen | None":
        """What is in the directory; None when it is no directory any more."""
        files: dict[str, str] = {}
        folders: dict[str, int] = {}
        try:
            descriptor = self._beneath.directory(self._root, segments)
        except (StudioError, OSError):
            return None
        try:
            self._watch(segments, descriptor)  # before looking, so that nothing falls in between
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    if self._ignored(segments, entry.name):
                        continue
                    with suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISDIR(status.st_mode):
                            folders[entry.name] = status.st_ino
                        elif (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)) and len(
                            files
                        ) < MAX_ENTRIES:
                            files[entry.name] = etag_of(status)
        finally:
            os.close(descriptor)
        return _Seen(segments, files, folders)

    def _watch(self, segments: Segments, descriptor: int) -> None:
        if self._inotify is None or segments in self._watches:
            return
        try:
            watch = self._inotify.add(descriptor)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.ENOMEM}:
                raise
            self.refused = error
            self._inotify = None
            self._watches.clear()
            self._watched.clear()
            return
        self._watches[segments] = watch
        self._watched[watch] = segments

    def _ignored(self, segments: Segments, name: str) -> bool:
        return name in IGNORED or (not segments and name == STUDIO_DIRECTORY) or not is_text(name)

    def _compare(self, segments: Segments, files: dict[str, str], changes: dict[str, FileChange]) -> None:
        before = self._files.get(segments, {})
        self._files[segments] = files
        self._count += len(files) - len(before)
        for name, etag in files.items():
            if before.get(name) != etag:
                _tell(changes, (*segments, name), "modified" if name in before else "created", etag)
        for name in before.keys() - files.keys():
            _tell(changes, (*segments, name), "deleted", None)

    def _drop(self, segments: Segments, changes: dict[str, FileChange]) -> None:
        """Forget a directory and all below it."""
        pending = [segments]
        if segments:
            self._folders.get(segments[:-1], {}).pop(segments[-1], None)
        while pending:
            current = pending.pop()
            self._compare(current, {}, changes)
            del self._files[current]
            pending += [(*current, name) for name in self._folders.pop(current, {})]
            watch = self._watches.pop(current, None)
            if watch is not None and self._watched.get(watch) == current:
                del self._watched[watch]
                if self._inotify is not None:
                    self._inotify.remove(watch)


def _tell(changes: dict[str, FileChange], segments: Segments, op: str, etag: str | None) -> None:
    path = "/".join(segments)
    if op == "created" and path in changes:
        op = "modified"  # it went with its old directory and came with the new one
    match op:
        case "created":
            changes[path] = FileChange(path, "created", etag)
        case "modified":
            changes[path] = FileChange(path, "modified", etag)
        case _:
            changes[path] = FileChange(path, "deleted", etag)
