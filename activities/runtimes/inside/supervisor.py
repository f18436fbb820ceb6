"""The local driver's memory: one process per dev server that outlives the service and writes down what happens.

alive       held (flock) for as long as the server, or anything of it, lives
log, log.1  its output, 10 MiB each
exit.json   {"exit_code", "out_of_memory"}, written whole at the end
pid         this process's id, valid while `alive` is held
"""

import fcntl
import json
import os
import selectors
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from activities.runtimes.inside import processes

_LOG_LIMIT = 10 * 1024 * 1024
_TICK_S = 1.0


def main(arguments: Mapping[str, Any]) -> int:
    """`{folder, argv, environment, message, groups, memory_events, mark}`: detach, hold `alive`, start `argv`.

    `message` goes to its standard input; `groups` are cgroup folders that it is put into. The caller's own process
    ends at once, with 0 when the lock was taken and the program has started.
    """
    told, tell = os.pipe()
    if os.fork():
        os.close(tell)
        return 0 if os.read(told, 1) == b"1" else 1
    try:
        os.setsid()
        if os.fork() == 0:
            os.close(told)
            _supervise(arguments, tell)
    finally:
        os._exit(0)


def _supervise(arguments: Mapping[str, Any], tell: int) -> None:
    folder = Path(arguments["folder"])
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    alive = os.open(folder / "alive", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    processes.adopt_orphans()
    (folder / "exit.json").unlink(missing_ok=True)
    (folder / "pid").write_text(str(os.getpid()))
    log = _Log(folder)
    child = _start(arguments)
    signal.signal(signal.SIGTERM, lambda *_: child.kill())
    os.write(tell, b"1")
    os.close(tell)
    _copy(child, log)
    code = processes.exit_code_of(child.wait())
    mark = str(arguments["mark"])
    processes.end(lambda: processes.descendants(os.getpid()) | processes.marked(mark), grace_s=0)
    _drain(child, log)
    _write_end(folder, {"exit_code": code, "out_of_memory": _oom(arguments["memory_events"])})
    for group in arguments["groups"]:
        _reap_all()
        try:
            Path(group).rmdir()
        except OSError:  # a process of it is still going; the next start uses it again
            continue


def _start(arguments: Mapping[str, Any]) -> "subprocess.Popen[bytes]":
    reader, writer = os.pipe()

    def join_groups() -> None:
        for group in arguments["groups"]:
            with Path(group, "cgroup.procs").open("w") as file:
                file.write("0")

    child = subprocess.Popen(
        arguments["argv"],
        env=dict(arguments["environment"]),
        stdin=reader,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=join_groups,  # noqa: PLW1509 -- this process has no threads
    )
    os.close(reader)
    with os.fdopen(writer, "wb") as file:
        file.write(arguments["message"].encode())
    return child


def _copy(child: "subprocess.Popen[bytes]", log: "_Log") -> None:
    """Its output into the log, until it has ended."""
    output = child.stdout
    if output is None:
        return
    open_ = True
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while child.poll() is None:
            if open_ and selector.select(_TICK_S if child.poll() is None else 0):
                data = os.read(output.fileno(), 65536)
                open_ = bool(data)
                log.write(data)
                if not open_:
                    selector.unregister(output)
            elif not open_:
                child.wait()
            _reap(child)


def _drain(child: "subprocess.Popen[bytes]", log: "_Log") -> None:
    if child.stdout is None:
        return
    os.set_blocking(child.stdout.fileno(), False)
    try:
        while data := os.read(child.stdout.fileno(), 65536):
            log.write(data)
    except BlockingIOError:
        return


def _reap(child: "subprocess.Popen[bytes]") -> None:
    """Bury orphans that came to us, but leave the child to who waits for it."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid == child.pid:
            return
        os.waitpid(ended.si_pid, 0)


def _reap_all() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _oom(events: "str | None") -> bool:
    """Whether the kernel ended one of the group's processes for its memory."""
    if events is None:
        return False
    try:
        lines = Path(events).read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith("oom_kill ") and not line.endswith(" 0") for line in lines)


def _write_end(folder: Path, end: Mapping[str, Any]) -> None:
    temporary = folder / "exit.json.new"
    temporary.write_text(json.dumps(end))
    temporary.rename(folder / "exit.json")


class _Log:
    """Two files, the older one dropped when the newer is full."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "log"
        self._file = self._path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Append."""
        if self._file.tell() > _LOG_LIMIT:
            self._file.close()
            self._path.rename(self._path.with_suffix(".1"))
            self._file = self._path.open("ab", buffering=0)
        self._file.write(data)
