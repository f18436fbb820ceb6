"""One project's open folder, for writing, in blocking calls. `store.py` runs them in threads.

Writes go through `.studio/tmp`: a file is complete there before one rename brings it to its place, and a directory
leaves its place by one rename before it is emptied. So watchers see whole files only, and what a crash leaves behind
lies in one place, hidden, swept by a later write.
"""

import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from activities.files import faults
from activities.files.beneath import DIRECTORY, Beneath, Place, exists, parse_path, rename_new, sync_file_system
from activities.files.entries import check, entry_of, etag_of, regular
from activities.files.reading import ProjectReader
from activities.files.trees import Owner, move_out, remove_tree
from activities.ports import FileChange, FilePrecondition
from workflows.contracts.errors import BadPathError, ConflictError, InvalidError, NotFoundError, PreconditionError
from workflows.contracts.names import STUDIO_DIRECTORY

_TEMP = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LEFT_BEHIND_S = 3600
"""What lies longer than this in `.studio/tmp` belongs to nobody: an upload is over by then."""


class Journal:
    """How to take back what was done, newest first, and what to remove once it stands."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self.discarded: list[str] = []

    def note(self, undo: Callable[[], None]) -> None:
        """Remember the way back of a step that has just been done."""
        self._undo.append(undo)

    def roll_back(self) -> None:
        """Take everything back. A step that a program in the container made impossible is left as it is."""
        while self._undo:
            with suppress(OSError, NotFoundError, ConflictError, BadPathError):
                self._undo.pop()()


@dataclass
class TempFile:
    """A file in the making: open, in `.studio/tmp`."""

    descriptor: int
    name: str


class ProjectWriter(ProjectReader):
    """The open folder with its scratch folder. All but `new_temp` and `discard` need the project's lock."""

    def __init__(self, root: Path, owner: Owner | None, beneath: Beneath) -> None:
        super().__init__(root, beneath)
        self._owner = owner
        self._scratch: int | None = None

    def close(self) -> None:
        """Close root and scratch folder."""
        super().close()
        if self._scratch is not None:
            os.close(self._scratch)

    def new_temp(self) -> TempFile:
        """Begin a file."""
        name = f"put-{secrets.token_hex(8)}"
        with faults.translated(STUDIO_DIRECTORY):
            return TempFile(os.open(name, _TEMP, 0o600, dir_fd=self._scratch_folder()), name)

    def discard(self, temp: TempFile) -> None:
        """End a file that may or may not have come to its place."""
        os.close(temp.descriptor)
        self.discard_name(temp.name)

    def reopen_temp(self, name: str) -> TempFile:
        """Go on with a file that was closed."""
        return TempFile(os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._scratch_folder()), name)

    def close_temp(self, temp: TempFile) -> None:
        """Close a file that stays where it is."""
        os.close(temp.descriptor)

    def sync(self) -> None:
        """Bring everything written to the disk, after many writes at once."""
        sync_file_system(self._scratch_folder())

    def discard_name(self, name: str) -> None:
        """Remove something from `.studio/tmp`."""
        remove_tree(self._scratch_folder(), name)

    def check_put(self, path: str, precondition: FilePrecondition) -> None:
        """Raise what `commit` would raise now, without any effect."""
        self._refuse_reserved(parse_path(path))
        current = self.current(path)
        check(precondition, current, path)
        if current is not None and current.type == "dir":
            raise faults.is_directory(path)

    def commit(
        self,
        temp: TempFile,
        path: str,
        precondition: FilePrecondition,
        *,
        journal: Journal | None = None,
        mode: int | None = None,
    ) -> FileChange:
        """Bring the file to its place, parents made; under the project's lock. `mode` None: the old file's."""
        self.check_put(path, precondition)
        with faults.translated(path), self._writable(path, follow=True, journal=journal) as place:
            before = self._look(place)
            check(precondition, before and entry_of(path, before), path)
            if before is not None:
                regular(before, path)
            if mode is None:
                mode = 0o644 if before is None else before.st_mode & 0o777
            self._give(temp.descriptor)
            os.fchmod(temp.descriptor, mode)
            undo = None if journal is None else self._way_back(journal, place, before)
            self._rename(temp.name, place, new=precondition.if_none_match)
            if journal is not None and undo is not None:
                journal.note(undo)
            else:
                os.fsync(place.parent)
            etag = etag_of(os.fstat(temp.descriptor))
            return FileChange(place.path, "created" if before is None else "modified", etag)

    def delete(
        self, path: str, *, recursive: bool, precondition: FilePrecondition, journal: Journal | None = None
    ) -> FileChange:
        """Remove a file, a link, or with `recursive` a directory; under the project's lock."""
        with faults.translated(path), self._writable(path, follow=False, make=False) as place:
            before = os.stat(place.name, dir_fd=place.parent, follow_symlinks=False)
            check(precondition, entry_of(path, before), path)
            if stat.S_ISDIR(before.st_mode) and not recursive:
                raise faults.is_directory(path)
            removed = f"removed-{secrets.token_hex(8)}"
            move_out(place.parent, place.name, self._scratch_folder(), removed)
            os.fsync(place.parent)
            if journal is None:
                self.discard_name(removed)
            else:
                journal.discarded.append(removed)
                journal.note(lambda: self._put_back(removed, place.path))
            return FileChange(place.path, "deleted", None)

    def move(self, source: str, target: str, *, overwrite: bool, journal: Journal | None = None) -> list[FileChange]:
        """Rename; under the project's lock. Links are moved and replaced, never followed."""
        with faults.translated(source), self._writable(source, follow=False, make=False) as old:
            status = os.stat(old.name, dir_fd=old.parent, follow_symlinks=False)
            self._check_move(old, target, overwrite=overwrite)
            with faults.translated(target), self._writable(target, follow=False, journal=journal) as new:
                before = self._look(new)
                if old.segments == new.segments:
                    return []
                undo = None if journal is None or before is None else self._way_back(journal, new, before)
                self._exchange(old, new, overwrite=overwrite)
                if journal is not None:
                    if undo is not None:
                        journal.note(undo)
                    journal.note(lambda: self._move_back(new.path, old.path))
                os.fsync(new.parent)
                os.fsync(old.parent)
                etag = None
                if stat.S_ISREG(status.st_mode):
                    with suppress(FileNotFoundError):
                        etag = etag_of(os.stat(new.name, dir_fd=new.parent, follow_symlinks=False))
                return [
                    FileChange(old.path, "deleted", None),
                    FileChange(new.path, "created" if before is None else "modified", etag),
                ]

    def check_move(self, source: str, target: str, *, overwrite: bool) -> None:
        """Raise what `move` would raise now, without any effect."""
        with faults.translated(source), self._writable(source, follow=False, make=False) as old:
            os.stat(old.name, dir_fd=old.parent, follow_symlinks=False)
            self._check_move(old, target, overwrite=overwrite)

    def check_delete(self, path: str, *, recursive: bool, precondition: FilePrecondition) -> None:
        """Raise what `delete` would raise now, without any effect."""
        with faults.translated(path), self._writable(path, follow=False, make=False) as place:
            before = os.stat(place.name, dir_fd=place.parent, follow_symlinks=False)
            check(precondition, entry_of(path, before), path)
            if stat.S_ISDIR(before.st_mode) and not recursive:
                raise faults.is_directory(path)

    def make_directory(self, path: str, *, journal: Journal) -> None:
        """Make a directory with its parents; there already is success."""
        with faults.translated(path), self._writable(path, follow=True, journal=journal) as place:
            if self._look(place) is None:
                self._maker(journal)(place.parent, place.name, place.segments)

    def make_link(self, path: str, text: str, *, journal: Journal) -> FileChange:
        """Make a symbolic link in the place of a file or link."""
        with faults.translated(path), self._writable(path, follow=False, journal=journal) as place:
            before = self._look(place)
            if before is not None and stat.S_ISDIR(before.st_mode):
                raise faults.is_directory(path)
            name = f"link-{secrets.token_hex(8)}"
            os.symlink(text, name, dir_fd=self._scratch_folder())
            if self._owner is not None:
                os.chown(name, *self._owner, dir_fd=self._scratch_folder(), follow_symlinks=False)
            undo = self._way_back(journal, place, before)
            self._rename(name, place, new=False)
            journal.note(undo)
            return FileChange(place.path, "created" if before is None else "modified", None)

    def discard_names(self, names: Iterable[str]) -> None:
        """Remove several things from `.studio/tmp`; not there is success."""
        for name in names:
            self.discard_name(name)

    def sweep(self) -> None:
        """Remove what crashed writers left behind."""
        oldest = time.time() - _LEFT_BEHIND_S
        scratch = self._scratch_folder()
        with os.scandir(scratch) as entries:
            names = [item.name for item in entries if item.stat(follow_symlinks=False).st_ctime < oldest]
        for name in names:
            remove_tree(scratch, name)

    # --- Parts ------------------------------------------------------------------------------------------------

    def _look(self, place: Place) -> os.stat_result | None:
        try:
            return os.stat(place.name, dir_fd=place.parent, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _writable(self, path: str, *, follow: bool, make: bool = True, journal: Journal | None = None) -> Place:
        segments = parse_path(path)
        self._refuse_reserved(segments)
        place = self._beneath.place(self._root, segments, follow=follow, make=self._maker(journal) if make else None)
        try:
            self._refuse_reserved(place.segments)
        except BadPathError:
            os.close(place.parent)
            raise
        return place

    def _refuse_reserved(self, segments: tuple[str, ...]) -> None:
        if segments[0] == STUDIO_DIRECTORY:
            raise BadPathError(f"{STUDIO_DIRECTORY}/ belongs to the service; it can be read, not written.")

    def _maker(self, journal: Journal | None) -> Callable[[int, str, tuple[str, ...]], None]:
        def make(parent: int, name: str, segments: tuple[str, ...]) -> None:
            self._refuse_reserved(segments)
            with suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=parent)
                self._give_directory(parent, name)
                if journal is not None:
                    journal.note(lambda: self._unmake("/".join(segments)))

        return make

    def _give(self, descriptor: int) -> None:
        if self._owner is not None:
            os.fchown(descriptor, *self._owner)

    def _give_directory(self, parent: int, name: str) -> None:
        descriptor = os.open(name, DIRECTORY, dir_fd=parent)
        try:
            self._give(descriptor)
        finally:
            os.close(descriptor)

    def _scratch_folder(self) -> int:
        if self._scratch is None:
            with faults.translated(STUDIO_DIRECTORY):
                studio = self._own_folder(self._root, STUDIO_DIRECTORY)
                try:
                    self._scratch = self._own_folder(studio, "tmp")
                finally:
                    os.close(studio)
        return self._scratch

    def _own_folder(self, parent: int, name: str) -> int:
        with suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=parent)
            self._give_directory(parent, name)
        try:
            return os.open(name, DIRECTORY, dir_fd=parent)
        except NotADirectoryError:
            raise ConflictError(
                f"{STUDIO_DIRECTORY}/ must be a folder with a folder tmp/ in it; remove what is there instead.",
                code="studio_folder_damaged",
            ) from None

    def _rename(self, name: str, place: Place, *, new: bool) -> None:
        if new:
            try:
                rename_new((self._scratch_folder(), name), (place.parent, place.name))
            except FileExistsError:
                raise PreconditionError(f"There is something at {place.path!r} already.") from None
        else:
            os.rename(name, place.name, src_dir_fd=self._scratch_folder(), dst_dir_fd=place.parent)

    def _exchange(self, old: Place, new: Place, *, overwrite: bool) -> None:
        if overwrite:
            os.rename(old.name, new.name, src_dir_fd=old.parent, dst_dir_fd=new.parent)
        else:
            rename_new((old.parent, old.name), (new.parent, new.name))

    def _check_move(self, old: Place, target: str, *, overwrite: bool) -> None:
        segments = parse_path(target)
        self._refuse_reserved(segments)
        if segments[: len(old.segments)] == old.segments and segments != old.segments:
            raise InvalidError(f"{old.path!r} can't be moved into itself.", code="into_itself")
        if segments == old.segments or overwrite:
            return
        try:
            with faults.translated(target), self._beneath.place(self._root, segments, follow=False) as new:
                taken = exists(new.parent, new.name) and new.segments != old.segments
        except NotFoundError:
            return
        if taken:
            raise ConflictError(f"There is something at {target!r} already.", code="exists")

    # --- Ways back --------------------------------------------------------------------------------------------

    def _way_back(self, journal: Journal, place: Place, before: os.stat_result | None) -> Callable[[], None]:
        """Prepare to replace what is at the place; how to bring it back afterwards."""
        if before is None:
            return lambda: self._take_away(place.path)
        if stat.S_ISDIR(before.st_mode):
            return lambda: self._remake(place.path)  # a directory that a rename replaces was empty
        backup = f"backup-{secrets.token_hex(8)}"
        os.link(place.name, backup, src_dir_fd=place.parent, dst_dir_fd=self._scratch_folder(), follow_symlinks=False)
        journal.discarded.append(backup)
        return lambda: self._put_back(backup, place.path)

    def _put_back(self, backup: str, path: str) -> None:
        with self._beneath.place(self._root, parse_path(path), follow=False) as place:
            os.rename(backup, place.name, src_dir_fd=self._scratch_folder(), dst_dir_fd=place.parent)

    def _take_away(self, path: str) -> None:
        with self._beneath.place(self._root, parse_path(path), follow=False) as place:
            os.unlink(place.name, dir_fd=place.parent)

    def _unmake(self, path: str) -> None:
        with self._beneath.place(self._root, parse_path(path), follow=False) as place:
            os.rmdir(place.name, dir_fd=place.parent)

    def _remake(self, path: str) -> None:
        with self._beneath.place(self._root, parse_path(path), follow=False) as place:
            self._maker(None)(place.parent, place.name, place.segments)

    def _move_back(self, path: str, old_path: str) -> None:
        with (
            self._beneath.place(self._root, parse_path(path), follow=False) as new,
            self._beneath.place(self._root, parse_path(old_path), follow=False) as old,
        ):
            os.rename(new.name, old.name, src_dir_fd=new.parent, dst_dir_fd=old.parent)
