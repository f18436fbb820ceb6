"""What stands at a path: its description, its etag, and whether a precondition holds for it."""

import os
import stat
from datetime import UTC, datetime

from activities.files import faults
from activities.ports import FileEntry, FilePrecondition
from workflows.contracts.errors import PreconditionError


def etag_of(status: os.stat_result) -> str:
    """What changes with every write: inode, size and both times."""
    return f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ctime_ns:x}"


def entry_of(path: str, status: os.stat_result) -> FileEntry | None:
    """The entry, None for what is neither file nor directory nor link."""
    modified_at = datetime.fromtimestamp(status.st_mtime_ns / 1e9, UTC)
    if stat.S_ISREG(status.st_mode):
        return FileEntry(path, "file", status.st_size, modified_at, etag_of(status))
    if stat.S_ISDIR(status.st_mode):
        return FileEntry(path, "dir", 0, modified_at, None)
    if stat.S_ISLNK(status.st_mode):
        return FileEntry(path, "symlink", status.st_size, modified_at, None)
    return None


def check(precondition: FilePrecondition, current: FileEntry | None, path: str) -> None:
    """Raise `PreconditionError` unless the precondition holds for what is there now."""
    if precondition.if_none_match and current is not None:
        raise PreconditionError(f"There is something at {path!r} already.")
    if precondition.if_match is None:
        return
    wanted = {etag.strip() for etag in precondition.if_match.split(",")}
    if current is None or ("*" not in wanted and current.etag not in wanted):
        raise PreconditionError(f"{path!r} has changed since; read it again.")


def regular(status: os.stat_result, path: str) -> FileEntry:
    """The entry of a regular file; raises what says why it is none."""
    entry = entry_of(path, status)
    if entry is None:
        raise faults.not_a_file(path)
    if entry.type == "dir":
        raise faults.is_directory(path)
    if entry.type == "symlink":
        raise faults.leaves_project(path)  # exchanged for a link after it was resolved
    return entry


def is_text(name: str) -> bool:
    """Whether the name is valid UTF-8. Others are the container's alone: not listed, not reachable, not exported."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
