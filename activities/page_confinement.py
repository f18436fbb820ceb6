"""A program that is kept to one folder, the system's own files and one port: `python -I -S page_confinement.py …`.

For the browser of a page that may break out of its renderer. Of this machine it then has no other file (the projects
of other users, service-account tokens, mounted secrets), no look into a process that isn't its own child (so neither
its environment nor its memory, also of the same user), no TCP but to the gateway, and no signal to anybody else.
Landlock does it: the kernel's own, which needs no right and no namespace, so it holds in a container without any.
Imports nothing but the standard library: it stands between every look and its browser.
"""

import ctypes
import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_READ: Final = (
    *(f"/etc/{name}" for name in ("alternatives", "chromium", "chromium.d", "fonts", "opt", "ssl", "pki")),
    *(f"/etc/{name}" for name in ("group", "hosts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime")),
    *(f"/etc/{name}" for name in ("mime.types", "nsswitch.conf", "os-release", "passwd", "timezone")),
    *("/proc", "/sys/devices/system/cpu", "/var/cache/fontconfig"),
    *("/dev/random", "/dev/urandom"),
)
_READ_AND_WRITE: Final = ("/dev/full", "/dev/null", "/dev/zero")

# linux/landlock.h; the numbers of the system calls are the same on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION: Final = 1
_BENEATH, _PORT = 1, 2
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEVICE = 1 << 14, 1 << 15
_OF_FILES: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
_FILE_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 5: 16}
"""From this version on the kernel knows so many rights to files, each a bit."""
_CONNECT_TCP: Final = 1 << 1
_BIND_AND_CONNECT: Final = 0b11
_SOCKETS_AND_SIGNALS: Final = 0b11
_NETWORK_SINCE, _SIGNALS_SINCE = 4, 6

_NO_NEW_PRIVILEGES: Final = 38


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


class _Port(ctypes.Structure):
    _fields_ = (("allowed", ctypes.c_uint64), ("port", ctypes.c_uint64))


def missing_confinement() -> list[str]:
    """What this kernel, or a container's seccomp profile, can't keep a program from: nothing, where it can all."""
    version = _version()
    since = {"files and processes": 1, "network": _NETWORK_SINCE, "signals": _SIGNALS_SINCE}
    return [name for name, first in since.items() if version < first]


def confine(folder: Path, port: int, programs: Iterable[Path] = ()) -> None:
    """Keep this process and all that it starts to `folder`, the system, folders of `programs`, and TCP to `port`.

    Where the kernel can't, as far as it can: `missing_confinement`. Raises `OSError` when it can and doesn't.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = _version()
    if version == 0:
        return
    _checked(libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    known = (1 << max(bits for first, bits in _FILE_RIGHTS.items() if version >= first)) - 1
    handled = _Ruleset(
        known,
        _BIND_AND_CONNECT if version >= _NETWORK_SINCE else 0,
        _SOCKETS_AND_SIGNALS if version >= _SIGNALS_SINCE else 0,
    )
    ruleset = _checked(_call(_CREATE_RULESET, ctypes.byref(handled), ctypes.c_size_t(ctypes.sizeof(handled)), 0))
    system = _EXECUTE | _READ_FILE | _READ_DIR
    rights = {
        **dict.fromkeys(map(Path, _SYSTEM), system),
        **{program.parent: system for program in programs},
        **dict.fromkeys(map(Path, _READ), _READ_FILE | _READ_DIR),
        **dict.fromkeys(map(Path, _READ_AND_WRITE), _READ_FILE | _WRITE_FILE),
        folder: known,
    }
    for path, allowed in rights.items():
        _allow(ruleset, path, allowed & known)
    if handled.network:
        rule = _Port(_CONNECT_TCP, port)
        _checked(_call(_ADD_RULE, ruleset, _PORT, ctypes.byref(rule), 0))
    _checked(_call(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _allow(ruleset: int, path: Path, allowed: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            allowed &= _OF_FILES
        rule = _Beneath(allowed, descriptor)
        _checked(_call(_ADD_RULE, ruleset, _BENEATH, ctypes.byref(rule), 0))
    finally:
        os.close(descriptor)


def _version() -> int:
    """Landlock's version here; 0 where there is none, or where a seccomp profile keeps it away."""
    if sys.platform != "linux":
        return 0
    return max(0, _call(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION))


def _call(number: int, *arguments: object) -> int:
    result: int = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *arguments)
    return result


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def main() -> None:
    """Become `COMMAND…`, confined: `FOLDER PORT PROGRAM COMMAND…`. `PROGRAM`: what the command starts in the end."""
    folder, port, program, *command = sys.argv[1:]
    installed = Path(program)
    confine(Path(folder), int(port), {installed, installed.resolve()})
    os.execv(command[0], command)  # noqa: S606 -- this is what it is for, and there is no shell in it


if __name__ == "__main__":
    main()
