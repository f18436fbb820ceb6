"""inotify(7), as little of it as watching directories takes."""

import ctypes
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

CREATE_MODIFY_DELETE = 0x00000008 | 0x00000040 | 0x00000080 | 0x00000100 | 0x00000200
"""IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE: a directory's files changed."""
_MOVE_SELF = 0x00000800
_ONLYDIR = 0x01000000
IGNORED = 0x00008000
"""In an event: the watch is gone, because its directory is."""
OVERFLOW = 0x00004000
"""In an event: some were lost."""

_HEADER = struct.Struct("iIII")
_READ = 256 * 1024
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Notice:
    """Something happened in the directory of this watch (-1 with `OVERFLOW`)."""

    watch: int
    mask: int


class Inotify:
    """One inotify instance; non-blocking. Raises `OSError` (EMFILE, ENOSPC) when the machine's limits are used up."""

    def __init__(self) -> None:
        self.descriptor: int = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def add(self, directory: int) -> int:
        """Watch an open directory itself, not what is in its subdirectories; the watch's number."""
        path = f"/proc/self/fd/{directory}".encode()  # exactly this directory, whatever became of its name
        mask = CREATE_MODIFY_DELETE | _MOVE_SELF | _ONLYDIR
        return _checked(_libc.inotify_add_watch(self.descriptor, path, ctypes.c_uint32(mask)))

    def remove(self, watch: int) -> None:
        """End a watch; ended already is success."""
        _libc.inotify_rm_watch(self.descriptor, ctypes.c_int(watch))

    def notices(self) -> Iterator[Notice]:
        """All that have come, without waiting."""
        while True:
            try:
                data = os.read(self.descriptor, _READ)
            except BlockingIOError:
                return
            offset = 0
            while offset < len(data):
                watch, mask, _cookie, length = _HEADER.unpack_from(data, offset)
                offset += _HEADER.size + length
                yield Notice(watch, mask)

    def close(self) -> None:
        """End all watches."""
        os.close(self.descriptor)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
