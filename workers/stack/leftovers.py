"""Pid files: who runs, and what a supervisor that was killed left behind."""

import json
from pathlib import Path

import psutil

_SAME_START_S = 1.0
_GRACE_S = 5.0


def write_pid(folder: Path, name: str, pid: int) -> None:
    """Note the part's process: `{name}.pid` has the id alone, `{name}.started` when that process began."""
    (folder / f"{name}.started").write_text(json.dumps({"pid": pid, "at": psutil.Process(pid).create_time()}))
    (folder / f"{name}.pid").write_text(f"{pid}\n")


def forget_pid(folder: Path, name: str) -> None:
    """The part has ended."""
    for suffix in ("pid", "started", "ready"):
        (folder / f"{name}.{suffix}").unlink(missing_ok=True)


def end_leftovers(folder: Path) -> list[str]:
    """End every part that the pid files know and that still runs; returns their names. Blocking, about 5 s at most.

    A process counts only when it began when the file says: ids are used again. Each gets a chance to end in order.
    """
    names: dict[int, str] = {}
    processes = []
    for path in sorted(folder.glob("*.started")):
        process = _noted_process(path)
        if process is not None:
            processes.append(process)
            names[process.pid] = path.stem
            process.terminate()
        forget_pid(folder, path.stem)
    for process in psutil.wait_procs(processes, timeout=_GRACE_S)[1]:
        process.kill()
    psutil.wait_procs(processes, timeout=_GRACE_S)
    return sorted(names.values())


def _noted_process(path: Path) -> psutil.Process | None:
    try:
        note = json.loads(path.read_text())
        process = psutil.Process(note["pid"])
        same = abs(process.create_time() - note["at"]) < _SAME_START_S
    except (psutil.NoSuchProcess, ValueError, KeyError):
        return None
    return process if same and process.status() != psutil.STATUS_ZOMBIE else None
