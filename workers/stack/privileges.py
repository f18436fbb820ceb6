"""How a part is started: under which user, and what happens to it when its parent dies."""

import os
import pwd
import shutil
import stat
from pathlib import Path

_UNPRIVILEGED_USER = "nobody"


def die_with_parent(command: list[str], *, signal: str = "TERM") -> list[str]:
    """`command`, sent `signal` (a name without SIG) by the kernel when the thread that started it is gone.

    So a supervisor that was killed leaves nothing running. Where util-linux is missing (macOS) the command is
    unchanged, and the next `up` ends what was left. The process id stays the command's own: it is an exec.
    """
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", signal, "--", *command] if setpriv else command


def unprivileged_ids() -> tuple[int, int] | None:
    """User and group for programs that refuse root, or None when this process isn't root."""
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam(_UNPRIVILEGED_USER)
    return entry.pw_uid, entry.pw_gid


def as_unprivileged(command: list[str], *, needs: list[Path], signal: str | None = None) -> list[str]:
    """`command` for a program that refuses root: as it is for a common user, as `nobody` for root.

    `needs`: what the program must reach. Where a parent of one is closed to others (a checkout below `/root`), the
    program keeps root's right to pass it and nothing else of root; its user id is still not root's.
    """
    ids = unprivileged_ids()
    if ids is None:
        return die_with_parent(command, signal=signal) if signal else command
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise RuntimeError("PostgreSQL refuses to run as root and `setpriv` (util-linux) is missing: run as a user.")
    uid, gid = ids
    words = [setpriv, "--reuid", str(uid), "--regid", str(gid), "--clear-groups"]
    if not all(_open_to_others(path) for path in needs):
        passing = "+dac_read_search,+dac_override"
        words += ["--inh-caps", passing, "--ambient-caps", passing]
        # Without it access(2), by which initdb looks for `postgres`, counts no right of a user that isn't root.
        words += ["--securebits", "+no_setuid_fixup"]
    if signal:
        words += ["--pdeathsig", signal]
    return [*words, "--", *command]


def _open_to_others(path: Path) -> bool:
    """Whether any user may pass every folder above `path`, and read it when it is a program."""
    resolved = path.resolve()
    if resolved.is_file() and not resolved.stat().st_mode & stat.S_IXOTH:
        return False
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in resolved.parents)
