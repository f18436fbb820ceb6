"""A project as `.tar.gz`, made piece by piece as the reader takes it: nothing is held in memory or on disk."""

import os
import stat
import tarfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import closing, suppress

from activities.files.beneath import DIRECTORY
from activities.files.entries import is_text
from activities.files.reading import READ
from activities.files.trees import NODE_MODULES
from workflows.contracts.names import STUDIO_DIRECTORY

_PIECE = 256 * 1024
_BLOCK = 512
_GZIP = 31  # zlib's window bits for a gzip header and trailer


def export(root: int) -> Generator[bytes, None, None]:
    """The archive of the open folder `root`, in pieces; closes `root`.

    Left out: `.studio/`, every `node_modules`, sockets, FIFOs, devices, names that aren't UTF-8. Links are stored as
    links. A file that changes meanwhile is stored with the size that it had when it was opened.
    """
    packer = zlib.compressobj(level=6, wbits=_GZIP)
    waiting = bytearray()
    with closing(_tar(root)) as blocks:
        for block in blocks:
            waiting += packer.compress(block)
            if len(waiting) >= _PIECE:
                yield bytes(waiting)
                waiting.clear()
    yield bytes(waiting) + packer.flush()


def _tar(root: int) -> Generator[bytes, None, None]:
    # One descriptor and one list of names per level, as deep as the tree is.
    levels = [(root, "", _names(root, top=True))]
    try:
        while levels:
            folder, prefix, names = levels[-1]
            if not names:
                os.close(levels.pop()[0])
                continue
            name = names.pop()
            with suppress(OSError):  # gone, locked or exchanged: an archive of a living project leaves it out
                opened = yield from _entry(folder, name, prefix + name)
                if opened is not None:
                    levels.append((opened, f"{prefix}{name}/", _names(opened, top=False)))
    finally:
        for folder, _, _ in levels:
            os.close(folder)
    yield bytes(2 * _BLOCK)


def _names(folder: int, *, top: bool) -> list[str]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if is_text(entry.name) and entry.name != NODE_MODULES]
    return sorted((name for name in names if not (top and name == STUDIO_DIRECTORY)), reverse=True)


def _entry(folder: int, name: str, path: str) -> Generator[bytes, None, int | None]:
    """Yield one entry's blocks; the value is a descriptor to go on in when it is a directory."""
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    header = tarfile.TarInfo(path)
    header.mtime = int(status.st_mtime)
    header.mode = status.st_mode & 0o777
    if stat.S_ISDIR(status.st_mode):
        opened = os.open(name, DIRECTORY, dir_fd=folder)
        header.type = tarfile.DIRTYPE
        yield _block(header)
        return opened
    if stat.S_ISLNK(status.st_mode):
        header.type, header.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=folder)
        yield _block(header)
    elif stat.S_ISREG(status.st_mode):
        yield from _file(folder, name, header)
    return None


def _file(folder: int, name: str, header: tarfile.TarInfo) -> Iterator[bytes]:
    descriptor = os.open(name, READ, dir_fd=folder)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return
        header.size = status.st_size
        yield _block(header)
        left = header.size
        while left:
            piece = os.read(descriptor, min(_PIECE, left)) or bytes(min(_PIECE, left))  # it shrank: zeros
            left -= len(piece)
            yield piece
        yield bytes(-header.size % _BLOCK)
    finally:
        os.close(descriptor)


def _block(header: tarfile.TarInfo) -> bytes:
    return header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
