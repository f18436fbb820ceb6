"""Paths that can't leave their folder, whatever a program in the container does to it meanwhile.

A path is resolved from the project's open root, descriptor by descriptor. Links are followed as long as they stay
inside (a repository's `CLAUDE.md -> AGENTS.md`, a monorepo's `packages/*` are ordinary files to their owner); a link
to an absolute name or past the root is `bad_path`. What a resolution returns is free of links: an open parent
directory and the last name, so that one file has one real path for locks, events and the `.studio/` rule.

Nearly all paths hold no link and take one `openat2(2)` that refuses links, mounts and ways up (26 µs). Where it is
missing (old kernels, seccomp) or says that there is a link, a walk opens each part by `dir_fd` with `O_NOFOLLOW` and
reads links itself; `..` in a link's text goes back to the descriptor that was opened before, never up by the kernel.
"""

import ctypes
import errno
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Self

from activities.files.faults import is_directory, leaves_project, no_such_file
from workflows.contracts.errors import BadPathError

MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 255
MAX_DEPTH = 128
"""Deeper paths are refused: the walk holds one descriptor a level."""
_MAX_LINKS = 40

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags with which a directory is opened; never through a link."""

_SYS_OPENAT2 = 437  # the same on every architecture
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x01, 0x02, 0x04, 0x08
_STRICT = _NO_XDEV | _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH
_RENAME_NOREPLACE = 1
_RETRIES = 8

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def parse_path(path: str) -> tuple[str, ...]:
    """The path's names. Raises `BadPathError` for what can't name a file in a project; nothing is rewritten."""
    try:
        length = len(path.encode())
    except UnicodeEncodeError:
        raise BadPathError("A path must be valid UTF-8.") from None
    if not path or path.startswith("/"):
        raise BadPathError("A path is relative to the project's folder and not empty.")
    if "\0" in path or length > MAX_PATH_BYTES:
        raise BadPathError(f"A path has no NUL and at most {MAX_PATH_BYTES} bytes.")
    names = tuple(path.split("/"))
    if len(names) > MAX_DEPTH:
        raise BadPathError(f"A path has at most {MAX_DEPTH} parts.")
    for name in names:
        if name in {"", ".", ".."}:
            raise BadPathError(f"The path {path!r} has a part that is empty, '.' or '..'.")
        if len(name.encode()) > MAX_NAME_BYTES:
            raise BadPathError(f"A name in a path has at most {MAX_NAME_BYTES} bytes.")
    return names


@dataclass(frozen=True)
class Place:
    """Where a path leads: `name` in the open directory `parent`. `segments`: its real path, without links.

    A context manager: closes `parent`.
    """

    parent: int
    name: str
    segments: tuple[str, ...]

    @property
    def path(self) -> str:
        """The real path as text."""
        return "/".join(self.segments)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.parent)


MakeDirectory = Callable[[int, str, tuple[str, ...]], None]
"""Makes a missing directory: its parent's descriptor, its name, its real path."""


@cache
def openat2_works() -> bool:
    """Whether this kernel has `openat2` and lets us call it."""
    root = os.open("/", DIRECTORY)
    try:
        os.close(_openat2(root, "."))
    except OSError:
        return False
    finally:
        os.close(root)
    return True


class Beneath:
    """Resolves paths beneath an open root. Blocking; holds no state but the choice of the method."""

    def __init__(self, *, use_openat2: bool | None = None) -> None:
        self._use_openat2 = openat2_works() if use_openat2 is None else use_openat2

    def place(self, root: int, segments: tuple[str, ...], *, follow: bool, make: MakeDirectory | None = None) -> Place:
        """Where `segments` lead; the last name need not exist. `follow`: through a link at the last name too.

        `make` is called for missing parents. Raises `BadPathError`, `NotFoundError` (a parent is missing) and
        `OSError` (ENOTDIR: a parent is a file).
        """
        parent = self._quick(root, segments[:-1])
        if parent is not None:
            if not follow or _read_link(parent, segments[-1]) is None:
                return Place(parent, segments[-1], segments)
            os.close(parent)
        with _Walk(root, segments, make) as walk:
            name = walk.run(follow=follow)
            if name is None:
                raise is_directory("/".join(segments))
            return Place(os.dup(walk.top), name, (*walk.names, name))

    def directory(self, root: int, segments: tuple[str, ...]) -> int:
        """An open directory; the caller closes it. Raises as `place` does."""
        if not segments:
            return os.open(".", DIRECTORY, dir_fd=root)
        quick = self._quick(root, segments)
        if quick is not None:
            return quick
        with _Walk(root, (*segments, "."), None) as walk:
            walk.run(follow=True)
            return os.dup(walk.top)

    def _quick(self, root: int, segments: tuple[str, ...]) -> int | None:
        """The directory by one call, None when a link, a missing part or a race wants the walk's verdict."""
        if not segments:
            return os.open(".", DIRECTORY, dir_fd=root)
        if not self._use_openat2:
            return None
        for _ in range(_RETRIES):
            try:
                return _openat2(root, "/".join(segments))
            except OSError as error:
                if error.errno != errno.EAGAIN:  # EAGAIN: a rename went on meanwhile
                    return None
        return None


class _Walk:
    """One walk, holding a descriptor for each level that it is deep."""

    def __init__(self, root: int, segments: tuple[str, ...], make: MakeDirectory | None) -> None:
        self._path = "/".join(segments)
        self._pending = deque(segments)
        self._make = make
        self._stack = [os.open(".", DIRECTORY, dir_fd=root)]
        self._device = os.fstat(root).st_dev
        self._links = 0
        self.names: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._stack:
            os.close(descriptor)

    @property
    def top(self) -> int:
        """The directory in which the walk stands."""
        return self._stack[-1]

    def run(self, *, follow: bool) -> str | None:
        """Walk to the end. The last name, in `top`; None when a link led to the directory `top` itself."""
        while self._pending:
            name = self._pending.popleft()
            if name == ".":
                continue
            if name == "..":
                self._up()
                continue
            last = not self._pending
            target = None if last and not follow else _read_link(self.top, name)
            if target is not None:
                self._expand(target)
            elif last:
                return name
            else:
                self._down(name)
        return None

    def _up(self) -> None:
        if not self.names:
            raise leaves_project(self._path)
        os.close(self._stack.pop())
        self.names = self.names[:-1]

    def _expand(self, target: str) -> None:
        self._count_link()
        if target.startswith("/"):
            raise leaves_project(self._path)
        # A link's text may be any bytes; names that the service would refuse are found missing or refused below.
        parts = [part for part in target.split("/") if part]
        if target.endswith("/"):
            parts.append(".")
        self._pending.extendleft(reversed(parts))

    def _down(self, name: str) -> None:
        if len(self._stack) > MAX_DEPTH:
            raise BadPathError(f"{self._path!r} is too deep behind its links.")
        try:
            descriptor = os.open(name, DIRECTORY, dir_fd=self.top)
        except FileNotFoundError:
            if self._make is None:
                raise no_such_file(self._path) from None
            self._make(self.top, name, (*self.names, name))
            self._again(name)
            return
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.ENOTDIR} and _read_link(self.top, name) is not None:
                self._again(name)  # it became a link after we looked
                return
            raise
        self._stack.append(descriptor)
        self.names = (*self.names, name)
        if os.fstat(descriptor).st_dev != self._device:
            raise leaves_project(self._path)

    def _again(self, name: str) -> None:
        self._count_link()
        self._pending.appendleft(name)

    def _count_link(self) -> None:
        self._links += 1
        if self._links > _MAX_LINKS + MAX_DEPTH * (self._make is not None):
            raise BadPathError(f"{self._path!r} goes through too many links.")


def rename_new(source: tuple[int, str], target: tuple[int, str]) -> None:
    """Rename, but only where nothing is: `FileExistsError` otherwise, also against a writer in the container."""
    result = _libc.renameat2(
        ctypes.c_int(source[0]),
        os.fsencode(source[1]),
        ctypes.c_int(target[0]),
        os.fsencode(target[1]),
        ctypes.c_uint(_RENAME_NOREPLACE),
    )
    if result == 0:
        return
    code = ctypes.get_errno()
    if code not in {errno.EINVAL, errno.ENOSYS}:
        raise OSError(code, os.strerror(code), target[1])
    # A file system without the flag (some network ones): look first; only a writer in the container can slip in.
    if exists(target[0], target[1]):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target[1])
    os.rename(source[1], target[1], src_dir_fd=source[0], dst_dir_fd=target[0])


def exists(parent: int, name: str) -> bool:
    """Whether anything has this name, a dangling link too."""
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def sync_file_system(descriptor: int) -> None:
    """Bring everything on the descriptor's file system to the disk."""
    if _libc.syncfs(ctypes.c_int(descriptor)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _openat2(directory: int, path: str) -> int:
    how = _OpenHow(DIRECTORY, 0, _STRICT)
    descriptor: int = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_int(directory),
        os.fsencode(path),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if descriptor < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return descriptor


def _read_link(parent: int, name: str) -> str | None:
    """The link's text, None when it is no link or isn't there."""
    try:
        return os.readlink(name, dir_fd=parent)
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.ENOENT}:
            return None
        raise
