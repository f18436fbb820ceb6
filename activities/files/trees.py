"""Whole trees: remove, copy, measure. A hostile tree (deep, locked, full of links) costs time, never more.

Nothing here follows a link, and nothing recurses deeper than `MAX_DEPTH`.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from activities.files.beneath import DIRECTORY, MAX_DEPTH
from workflows.contracts.errors import InvalidError, TooLargeError
from workflows.contracts.names import STUDIO_DIRECTORY

NODE_MODULES = "node_modules"
Owner = tuple[int, int]

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_WRITE_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SCRATCH = [STUDIO_DIRECTORY, "tmp"]
_BATCH = 10_000
_PIECE = 8 * 1024 * 1024
_REMOVE_ROUNDS = 20


def remove_tree(parent: int, name: str, *, spare: str = "removed-") -> None:
    """Remove `name` and all in it from the directory `parent`, which holds nothing but things to be removed.

    Subdirectories are moved up into `parent`, with names that begin with `spare`, before they are emptied: one
    descriptor and no recursion at any depth.
    Gone already, or removed by somebody else at the same time, is success.
    """
    pending = [(name, 0)]
    while pending:
        current, rounds = pending.pop()
        moved = _empty(parent, current, spare)
        try:
            os.rmdir(current, dir_fd=parent)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno != errno.ENOTEMPTY or rounds >= _REMOVE_ROUNDS:
                raise
            pending.append((current, rounds + 1))  # somebody still writes into it
        pending.extend((fresh, 0) for fresh in moved)


def _empty(parent: int, name: str, spare: str) -> list[str]:
    """Unlink what is in the directory (or `name` itself); the new names in `parent` of its subdirectories."""
    try:
        descriptor = _open_locked(parent, name)
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)
        return []
    moved: list[str] = []
    try:
        while batch := _some_entries(descriptor):
            for entry in batch:
                with suppress(FileNotFoundError):
                    if entry.is_dir(follow_symlinks=False):
                        moved.append(_move_up(descriptor, entry.name, parent, spare))
                    else:
                        os.unlink(entry.name, dir_fd=descriptor)
    finally:
        os.close(descriptor)
    return moved


def _some_entries(descriptor: int) -> list["os.DirEntry[str]"]:
    with os.scandir(descriptor) as entries:
        return list(islice(entries, _BATCH))


def _move_up(source: int, name: str, parent: int, spare: str) -> str:
    fresh = f"{spare}{secrets.token_hex(8)}"
    move_out(source, name, parent, fresh)
    return fresh


def move_out(source: int, name: str, target: int, fresh: str) -> None:
    """Rename to `fresh` in the directory `target` what is to go; a directory also when its owner has locked it."""
    try:
        os.rename(name, fresh, src_dir_fd=source, dst_dir_fd=target)
    except PermissionError:
        with suppress(NotADirectoryError):
            os.close(_open_locked(source, name))  # a directory that we may not write can't change its parent
        os.rename(name, fresh, src_dir_fd=source, dst_dir_fd=target)


def _open_locked(parent: int, name: str) -> int:
    """Open a directory, giving ourselves the permissions first when they are missing."""
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        status = os.fstat(handle)
        if status.st_mode & stat.S_IRWXU != stat.S_IRWXU and os.geteuid() in {0, status.st_uid}:
            os.chmod(f"/proc/self/fd/{handle}", stat.S_IRWXU)  # noqa: PTH101 -- names an open descriptor
        return os.open(".", DIRECTORY, dir_fd=handle)
    finally:
        os.close(handle)


@dataclass
class CopyBudget:
    """What a copy may still take: bytes and entries."""

    size: int
    entries: int

    def take(self, size: int) -> None:
        """Use some up. Raises `TooLargeError` when it is gone."""
        self.size -= size
        self.entries -= 1
        if self.size < 0 or self.entries < 0:
            raise TooLargeError("The source has more files, or larger ones, than a project may hold.")


def copy_tree(source: Path, target: Path, owner: Owner | None, budget: CopyBudget) -> None:
    """Copy the folder `source` to the new folder `target`, as another project's beginning.

    Links are copied as links. Left out: the source's `.studio/`, sockets, FIFOs, devices, and what is in
    `node_modules` (an empty one stays; dependencies are installed, not copied). The source may change meanwhile.
    """
    os.mkdir(target, 0o755)  # noqa: PTH102 -- mode and umask as for every other directory here
    with _opened(os.open(source, DIRECTORY)) as here, _opened(os.open(target, DIRECTORY)) as there:
        _own(there, owner)
        _copy_entries(here, there, owner, budget, depth=0)


def make_folder(target: Path, owner: Owner | None) -> None:
    """Make an empty folder that belongs to `owner`."""
    os.mkdir(target, 0o755)  # noqa: PTH102 -- as above
    with _opened(os.open(target, DIRECTORY)) as there:
        _own(there, owner)


def _copy_entries(here: int, there: int, owner: Owner | None, budget: CopyBudget, *, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidError(f"The source's folders are nested deeper than {MAX_DEPTH}.", code="tree_too_deep")
    with os.scandir(here) as entries:
        names = [entry.name for entry in islice(entries, max(budget.entries, 0) + 1)]
    for name in names:
        if depth == 0 and name == STUDIO_DIRECTORY:
            continue
        with suppress(FileNotFoundError):
            _copy_entry(here, there, name, owner, budget, depth=depth)


def _copy_entry(here: int, there: int, name: str, owner: Owner | None, budget: CopyBudget, *, depth: int) -> None:
    status = os.stat(name, dir_fd=here, follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        budget.take(0)
        os.mkdir(name, 0o755, dir_fd=there)
        with _opened(os.open(name, DIRECTORY, dir_fd=there)) as target:
            _own(target, owner)
            if name == NODE_MODULES:
                return
            with _opened(os.open(name, DIRECTORY, dir_fd=here)) as source:
                _copy_entries(source, target, owner, budget, depth=depth + 1)
    elif stat.S_ISLNK(status.st_mode):
        budget.take(0)
        os.symlink(os.readlink(name, dir_fd=here), name, dir_fd=there)
        if owner is not None:
            os.chown(name, *owner, dir_fd=there, follow_symlinks=False)
    elif stat.S_ISREG(status.st_mode):
        _copy_file(here, there, name, owner, budget)


def _copy_file(here: int, there: int, name: str, owner: Owner | None, budget: CopyBudget) -> None:
    with _opened(os.open(name, _READ, dir_fd=here)) as source:
        status = os.fstat(source)
        if not stat.S_ISREG(status.st_mode):
            return  # exchanged after we looked
        budget.take(status.st_size)
        with _opened(os.open(name, _WRITE_NEW, 0o600, dir_fd=there)) as target:
            offset = 0
            while offset < status.st_size:
                sent = os.sendfile(target, source, offset, min(_PIECE, status.st_size - offset))
                if sent == 0:
                    break
                offset += sent
            _own(target, owner)
            os.fchmod(target, (status.st_mode & 0o777) | stat.S_IRUSR | stat.S_IWUSR)


def measure(root: Path, *, most_entries: int) -> tuple[int, int]:
    """Bytes on disk and number of entries below `root`, links not followed; stops after `most_entries`.

    Files in the making (`.studio/tmp`) are not counted.
    """
    total, count = 0, 0
    stack: list[int] = []
    names: list[str] = []
    try:
        stack.append(os.open(root, DIRECTORY))
        walks = [_statuses(stack[-1])]
        while walks:
            item = next(walks[-1], None)
            if item is None:
                walks.pop()
                os.close(stack.pop())
                names = names[:-1]
                continue
            name, status = item
            if [*names, name] == _SCRATCH:
                continue
            total, count = total + status.st_blocks * 512, count + 1
            if count > most_entries:
                break
            if stat.S_ISDIR(status.st_mode) and len(stack) <= MAX_DEPTH:
                with suppress(OSError):
                    stack.append(os.open(name, DIRECTORY, dir_fd=stack[-1]))
                    walks.append(_statuses(stack[-1]))
                    names.append(name)
    finally:
        for descriptor in stack:
            os.close(descriptor)
    return total, count


def _statuses(descriptor: int) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(descriptor) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                yield entry.name, entry.stat(follow_symlinks=False)


def leads_out(text: str, depth: int) -> bool:
    """Whether a link's text, read in a folder `depth` levels below the root, leads above the root."""
    if not text or text.startswith("/"):
        return True
    for part in text.split("/"):
        if part == "..":
            depth -= 1
        elif part not in {"", "."}:
            depth += 1
        if depth < 0:
            return True
    return False


def move_tree(source: Path, target: Path) -> None:
    """Rename a folder that is to go, also one that its owner has locked."""
    with _opened(os.open(source.parent, DIRECTORY)) as here, _opened(os.open(target.parent, DIRECTORY)) as there:
        move_out(here, source.name, there, target.name)


def remove_folder(folder: Path) -> None:
    """Remove a folder and all in it; gone already is success. Its parent is ours alone."""
    with suppress(FileNotFoundError), _opened(os.open(folder.parent, DIRECTORY)) as parent:
        remove_tree(parent, folder.name)


@contextmanager
def _opened(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _own(descriptor: int, owner: Owner | None) -> None:
    if owner is not None:
        os.fchown(descriptor, *owner)
