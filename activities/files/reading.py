"""One project's open folder, for reading, in blocking calls. `store.py` runs them in threads."""

import os
from collections import deque
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from activities.files import faults
from activities.files.beneath import DIRECTORY, Beneath, parse_path
from activities.files.entries import entry_of, is_text, regular
from activities.files.trees import NODE_MODULES
from activities.ports import FileEntry, FileListing
from workflows.contracts.errors import BadPathError, ConflictError, NotFoundError
from workflows.contracts.names import STUDIO_DIRECTORY

MAX_ENTRIES = 10_000
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""Flags with which a file is opened for reading: a FIFO planted there can't hang us."""


class ProjectReader:
    """A context manager over the project's open root. Paths come as text and are checked here."""

    def __init__(self, root: Path, beneath: Beneath) -> None:
        self._beneath = beneath
        try:
            with faults.translated("."):
                self._root = os.open(root, DIRECTORY)
        except NotFoundError:
            raise NotFoundError("This project has no files.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the root."""
        os.close(self._root)

    def stat(self, path: str, *, follow: bool = True) -> FileEntry:
        """What is at the path."""
        with faults.translated(path), self._beneath.place(self._root, parse_path(path), follow=follow) as place:
            entry = entry_of(path, os.stat(place.name, dir_fd=place.parent, follow_symlinks=False))
        if entry is None:
            raise faults.not_a_file(path)
        return entry

    def open(self, path: str) -> tuple[int, FileEntry]:
        """A descriptor of the regular file at the path and what it is."""
        with faults.translated(path), self._beneath.place(self._root, parse_path(path), follow=True) as place:
            regular(os.stat(place.name, dir_fd=place.parent, follow_symlinks=False), path)
            descriptor = os.open(place.name, READ, dir_fd=place.parent)
            try:
                return descriptor, regular(os.fstat(descriptor), path)
            except BaseException:
                os.close(descriptor)
                raise

    def directory(self) -> int:
        """A descriptor of the root, for the caller to close."""
        return os.dup(self._root)

    def entries(self, path: str, *, depth: int, include_all: bool) -> FileListing:
        """What is below the path, level by level, so that a cut list has the upper levels whole."""
        start = parse_path(path) if path else ()
        found: list[FileEntry] = []
        pending = deque([(start, 1)])
        with faults.translated(path):
            os.close(self._beneath.directory(self._root, start))
        while pending and len(found) <= MAX_ENTRIES:
            segments, level = pending.popleft()
            with suppress(OSError, NotFoundError, ConflictError, BadPathError):  # gone or exchanged meanwhile
                for entry in self._level(segments, MAX_ENTRIES + 1 - len(found), include_all=include_all):
                    found.append(entry)
                    name = entry.path.rpartition("/")[2]
                    if entry.type == "dir" and level < depth and name != NODE_MODULES:
                        pending.append(((*segments, name), level + 1))
        return FileListing(sorted(found[:MAX_ENTRIES], key=lambda entry: entry.path), len(found) > MAX_ENTRIES)

    def _level(self, segments: tuple[str, ...], most: int, *, include_all: bool) -> list[FileEntry]:
        found: list[FileEntry] = []
        descriptor = self._beneath.directory(self._root, segments)
        try:
            with os.scandir(descriptor) as entries:
                for item in islice(entries, most):
                    if not is_text(item.name) or (not include_all and not segments and item.name == STUDIO_DIRECTORY):
                        continue
                    with suppress(FileNotFoundError):
                        entry = entry_of("/".join((*segments, item.name)), item.stat(follow_symlinks=False))
                        if entry is not None:
                            found.append(entry)
        finally:
            os.close(descriptor)
        return found

    def current(self, path: str) -> FileEntry | None:
        """What a write to the path would replace; None where nothing is."""
        try:
            return self.stat(path)
        except NotFoundError:
            return None
