"""The ledger of background commands: a folder for each, at `.studio/commands/{id}` in the project.

    lock      held (flock) by the process that runs the command, for as long as it lives
    started   made, durably, before the command is: a command that has it is never begun again
    output    stdout and stderr as they came, cut at a bound that its last line names
    exit      {"exit_code", "timed_out", "note"}, written whole at the end

Claiming by a lock makes every death safe: before `started` nothing ran and the next call begins; after it the lock
is free and `exit` is missing, so the command died with its container or its runner, and that is what its status says.
"""

import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from activities.runtimes.inside import processes, runs

_KEPT = 200
_KEPT_S = 7 * 24 * 3600
_POLL_S = 0.05
_KILLED = 137


def start(arguments: Mapping[str, Any]) -> int:
    """`{folder, id, token, command, cwd, environment, timeout_s, output_limit}`: begin it once; prints its status."""
    folder = Path(arguments["folder"]) / arguments["id"]
    folder.mkdir(parents=True, exist_ok=True)
    lock = _claim(folder)
    if lock is not None and not (folder / "started").exists():
        _begin(folder, lock, arguments)
    elif lock is not None:
        os.close(lock)
    _prune(folder)
    return _print(_status(folder))


def status(arguments: Mapping[str, Any]) -> int:
    """`{folder, id}`: prints `{exit_code, timed_out, note, output_size}`, or `null` when it was never started."""
    folder = Path(arguments["folder"]) / arguments["id"]
    return _print(_status(folder) if (folder / "started").exists() else None)


def output(arguments: Mapping[str, Any]) -> int:
    """`{folder, id, offset, limit}`: prints that range of the output."""
    with contextlib.suppress(FileNotFoundError), (_path(arguments) / "output").open("rb") as file:
        file.seek(arguments["offset"])
        left = arguments["limit"]
        while left > 0 and (piece := file.read(min(left, 65536))):
            left -= len(piece)
            _write(1, piece)
    return 0


def follow(arguments: Mapping[str, Any]) -> int:
    """`{folder, id, offset}`: prints the output from there on as it comes, until the command has ended."""
    folder = _path(arguments)
    try:
        file = (folder / "output").open("rb")
    except FileNotFoundError:
        return 0
    with file:
        file.seek(arguments["offset"])
        while True:
            ended = not _held(folder)
            while piece := file.read(65536):
                _write(1, piece)
            if ended:
                return 0
            time.sleep(_POLL_S)


def kill(arguments: Mapping[str, Any]) -> int:
    """`{folder, id, token}`: end its tree and wait until its end is written down; one that hasn't begun never will."""
    folder = _path(arguments)
    _forbid(folder)
    code = runs.kill(arguments)
    deadline = time.monotonic() + 5
    while _held(folder) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return code


def _forbid(folder: Path) -> None:
    """A start that was sent before the kill and arrives after it finds that the command has ended."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = _claim(folder)
    if lock is None:
        return
    if not (folder / "started").exists():
        _durably(folder, "exit", json.dumps({"exit_code": _KILLED, "note": "killed before it began"}).encode())
        _durably(folder, "started", b"")
    os.close(lock)


def _path(arguments: Mapping[str, Any]) -> Path:
    return Path(arguments["folder"]) / str(arguments["id"])


def _claim(folder: Path) -> int | None:
    """The lock, or None while another process holds it."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _held(folder: Path) -> bool:
    try:
        lock = _claim(folder)
    except FileNotFoundError:
        return False
    if lock is None:
        return True
    os.close(lock)
    return False


def _status(folder: Path) -> dict[str, Any]:
    held = _held(folder)
    try:
        size = (folder / "output").stat().st_size
    except FileNotFoundError:
        size = 0
    state: dict[str, Any] = {"exit_code": None, "timed_out": False, "note": "", "output_size": size}
    if held:
        return state
    try:
        ending = json.loads((folder / "exit").read_text())
    except (FileNotFoundError, ValueError):
        ending = {"exit_code": _KILLED, "note": "killed: its container was stopped or restarted while it ran"}
    return {**state, **ending}


def _begin(folder: Path, lock: int, arguments: Mapping[str, Any]) -> None:
    """Hand the lock to a process of its own, detached from the caller, and return once `started` is on disk."""
    told, tell = os.pipe()
    if os.fork() == 0:
        os.close(told)
        os.setsid()
        try:
            if os.fork() == 0:
                _detach()
                _record(folder, arguments, lambda: os.close(tell))
        finally:
            os._exit(0)
    os.close(tell)
    os.close(lock)
    os.wait()
    os.read(told, 1)  # ends when the recorder, the pipe's only other holder, has closed it
    os.close(told)


def _detach() -> None:
    """Let go of the call's pipes, or its end would wait for ours."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)


def _record(folder: Path, arguments: Mapping[str, Any], begun: Callable[[], None]) -> None:
    processes.adopt_orphans()
    with (folder / "output").open("ab", buffering=0) as file:
        _durably(folder, "started", b"")
        begun()
        reader, writer = os.pipe()
        child = runs.start(arguments, stdout=writer)
        os.close(writer)
        if child is None:
            file.write(b"studio: there is no such folder to run it in\n")
            ending: dict[str, Any] = {"exit_code": runs.NO_FOLDER}
        else:
            ending = _copy(child, reader, file.fileno(), arguments)
    _durably(folder, "exit", json.dumps(ending).encode())


def _copy(child: "subprocess.Popen[bytes]", reader: int, file: int, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Output into the file until the command ends or its time is over, then end its tree."""
    limit = int(arguments["output_limit"])
    deadline = time.monotonic() + float(arguments["timeout_s"])
    written = cut = 0
    ended = runs.ending(child)
    timed_out = False
    os.set_blocking(reader, False)
    while True:
        piece = _read(reader, ended.fileno(), deadline)
        if piece is None:
            timed_out = time.monotonic() >= deadline and child.poll() is None
            break
        keep = piece[: max(0, limit - written)]
        _write(file, keep)
        written += len(keep)
        cut += len(piece) - len(keep)
    code = runs.end_tree(child, str(arguments["token"]), runs.TIMED_OUT if timed_out else None)
    while piece := _rest(reader):
        keep = piece[: max(0, limit - written)]
        _write(file, keep)
        written += len(keep)
        cut += len(piece) - len(keep)
    if cut:
        _write(file, f"\n[studio: the output was cut at {limit} bytes; {cut} more came]\n".encode())
    return {"exit_code": code, "timed_out": timed_out}


def _read(reader: int, ended: int, deadline: float) -> bytes | None:
    """The next piece of output; None when the command has ended or its time is over."""
    while True:
        ready, _, _ = select.select([reader, ended], [], [], max(0.0, deadline - time.monotonic()))
        if reader in ready and (piece := _rest(reader)):
            return piece
        if ended in ready or not ready:
            return None
        if reader in ready:  # the command has closed its output and lives on
            select.select([ended], [], [], max(0.0, deadline - time.monotonic()))
            return None


def _rest(reader: int) -> bytes:
    try:
        return os.read(reader, 65536)
    except BlockingIOError:
        return b""


def _durably(folder: Path, name: str, content: bytes) -> None:
    """Write a file whole: it is there with its content, also after a power cut, or it isn't."""
    temporary = folder / f".{name}.{os.getpid()}"
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(folder / name)
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _prune(current: Path) -> None:
    """Forget commands that ended over a week ago, and all but the newest 200."""
    now = time.time()
    entries = [(entry.stat().st_mtime, entry) for entry in os.scandir(current.parent) if entry.is_dir()]
    for place, (changed_at, entry) in enumerate(sorted(entries, key=lambda item: item[0], reverse=True)):
        old = place >= _KEPT or now - changed_at > _KEPT_S
        if old and entry.name != current.name and not _held(Path(entry.path)):
            shutil.rmtree(entry.path, ignore_errors=True)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _print(value: "dict[str, Any] | None") -> int:
    json.dump(value, sys.stdout)
    sys.stdout.flush()
    return 0
