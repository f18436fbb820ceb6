"""A program that is kept to one folder, the system's own files and one port: `python -I -S page_confinement.py …`.

For the browser of a page that may break out of its renderer. Of this machine it then has no other file (the projects
of other users, service-account tokens, mounted secrets), no look into a process that isn't its own child (so neither
its environment nor its memory, also of the same user), no TCP but to the gateway, and no signal to anybody else.
Landlock does it: the kernel's own, which needs no right and no namespace, so it holds in a container without any.
What it doesn't know, a seccomp filter refuses: all other kinds of sockets. Without UDP nothing gets around the gateway,
and without netlink the browser doesn't hear of networks that come and go with other people's containers, at which it
would drop the requests under way.
Imports nothing but the standard library: it stands between every look and its browser.
"""

import ctypes
import errno
import os
import platform
import socket
import stat
import struct
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

# linux/seccomp.h, linux/audit.h, linux/filter.h
_SET_SECCOMP, _FILTER = 22, 2
_SOCKET_CALLS: Final = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
"""By machine: what it is for the kernel, and the number of its call `socket`."""
_IO_URING_SETUP: Final = 425
"""Refused, too: a ring makes sockets without that call."""
_FOREIGN_NUMBERS: Final = 0x40000000
"""From here on, x86_64 has its calls a second time, for programs with short pointers."""
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_CALL, _MACHINE, _FAMILY, _KIND, _PROTOCOL = 0, 4, 16, 24, 32
"""Where a call's number, machine, and first three arguments stand."""
_KIND_BITS: Final = 0xF
"""The rest says how its descriptor is opened."""
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EACCES


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


class _Port(ctypes.Structure):
    _fields_ = (("allowed", ctypes.c_uint64), ("port", ctypes.c_uint64))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def missing_confinement() -> list[str]:
    """What this kernel, or a container's seccomp profile, can't keep a program from: nothing, where it can all."""
    version = _version()
    since = {"files and processes": 1, "network": _NETWORK_SINCE, "signals": _SIGNALS_SINCE}
    missing = [name for name, first in since.items() if version < first]
    return missing if platform.machine() in _SOCKET_CALLS else [*missing, "sockets other than TCP's"]


def confine(folder: Path, port: int, programs: Iterable[Path] = ()) -> None:
    """Keep this process and all that it starts to `folder`, the system, folders of `programs`, and TCP to `port`.

    Where the kernel can't, as far as it can: `missing_confinement`. Raises `OSError` when it can and doesn't.
    """
    _checked(ctypes.CDLL(None, use_errno=True).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    _refuse_sockets()
    version = _version()
    if version > 0:
        _restrict(version, folder, port, programs)


def _refuse_sockets() -> None:
    """Leave this process sockets of TCP, which Landlock sees to, and those between programs of this machine."""
    if platform.machine() not in _SOCKET_CALLS:
        return
    machine, socket_call = _SOCKET_CALLS[platform.machine()]
    tcp, refuse, allow = 10, 16, 17
    # What is done, with which number, and where it goes on from a comparison that holds or doesn't: None is the next.
    steps = (
        (_LOAD, _MACHINE, None, None),
        (_EQUAL, machine, None, refuse),
        (_LOAD, _CALL, None, None),
        (_EQUAL, _IO_URING_SETUP, refuse, None),
        (_AT_LEAST, _FOREIGN_NUMBERS, refuse, None),
        (_EQUAL, socket_call, None, allow),
        (_LOAD, _FAMILY, None, None),
        (_EQUAL, socket.AF_UNIX, allow, None),
        (_EQUAL, socket.AF_INET, tcp, None),
        (_EQUAL, socket.AF_INET6, tcp, refuse),
        (_LOAD, _KIND, None, None),
        (_AND, _KIND_BITS, None, None),
        (_EQUAL, socket.SOCK_STREAM, None, refuse),
        (_LOAD, _PROTOCOL, None, None),
        (_EQUAL, socket.IPPROTO_IP, allow, None),
        (_EQUAL, socket.IPPROTO_TCP, allow, refuse),
        (_RETURN, _REFUSE, None, None),
        (_RETURN, _ALLOW, None, None),
    )
    code = b"".join(
        struct.pack("HBBI", does, *(0 if to is None else to - here - 1 for to in (then, otherwise)), number)
        for here, (does, number, then, otherwise) in enumerate(steps)
    )
    program = _Program(len(steps), code)
    _checked(ctypes.CDLL(None, use_errno=True).prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0))


def _restrict(version: int, folder: Path, port: int, programs: Iterable[Path]) -> None:
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
