"""Finding and ending whole process trees, from beside them in the container."""

import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

MARK = "STUDIO_RUN"
"""Environment variable by which every process of one run is found, wherever it went."""

_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.02
_KILL_ROUNDS = 100


def adopt_orphans() -> None:
    """Become the parent of every orphan below this process: none leaves the tree by forking twice."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def parents() -> dict[int, int]:
    """Process id → its parent's, of every living process seen here; zombies are dead."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # it ended while we looked
            continue
        if fields[0] not in "ZX":
            found[int(entry.name)] = int(fields[1])
    return found


def descendants(root: int) -> set[int]:
    """Every living process below `root`."""
    known = parents()
    found: set[int] = set()
    level = {root}
    while level:
        level = {pid for pid, parent in known.items() if parent in level} - found
        found |= level
    return found


def marked(token: str) -> set[int]:
    """Every living process that carries the run's mark, and all below them, but the caller."""
    needle = f"{MARK}={token}".encode()
    known = parents()
    found: set[int] = set()
    for pid in known:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:  # ended, or another user's
            continue
        if needle in environment.split(b"\0"):
            found.add(pid)
    level = set(found)
    while level:
        level = {pid for pid, parent in known.items() if parent in level} - found
        found |= level
    return found - {os.getpid()}


def end(find: Callable[[], set[int]], *, grace_s: float) -> bool:
    """TERM to all that `find` gives, then KILL until it gives none. Whether none is left."""
    if not _send(find(), signal.SIGTERM):
        return True
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline:
        time.sleep(_POLL_S)
        if not find():
            return True
    for _ in range(_KILL_ROUNDS):
        if not _send(find(), signal.SIGKILL):
            return True
        time.sleep(_POLL_S)
    return False


def _send(pids: set[int], number: int) -> int:
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:  # it ended by itself, or isn't ours to end
            continue
    return len(pids)


def exit_code_of(returncode: int) -> int:
    """What a shell would say: 128 + signal for a process that a signal ended."""
    return returncode if returncode >= 0 else 128 - returncode
