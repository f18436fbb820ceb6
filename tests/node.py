"""The parts of a cluster that tests/testbed/kube-node has made: one of them away for a while, and back for certain."""

import os
import signal
import subprocess
import time
from functools import cache
from pathlib import Path

import psutil

from tests.cluster import ROOT, kubeconfig, missing_cluster

_SCRIPT = ROOT / "tests" / "testbed" / "kube-node"
_DEATH_S = 10.0
_UP_S = 150.0


@cache
def _own_kubeconfig() -> Path:
    asked = subprocess.run([_SCRIPT, "kubeconfig"], capture_output=True, text=True, check=True)
    return Path(asked.stdout.strip())


@cache
def missing_node() -> str | None:
    missing = missing_cluster()
    if missing is None and kubeconfig().resolve() != _own_kubeconfig().resolve():
        return f"the cluster is that of KUBECONFIG={kubeconfig()}, whose parts aren't the tests' to stop"
    return missing


def hang(part: str) -> None:
    """The process is there, keeps its connections, and says nothing."""
    os.kill(_process(part).pid, signal.SIGSTOP)


def kill(part: str) -> None:
    """Its connections break off, and new ones are refused."""
    process = _process(part)
    process.kill()
    deadline = time.monotonic() + _DEATH_S
    while _lives(process):
        assert time.monotonic() < deadline, f"{part} outlives its end"
        time.sleep(0.05)


def heal() -> None:
    """Have every part run, whatever was done to it."""
    for path in _own_kubeconfig().parent.glob("*.pid"):
        try:
            _process(path.stem).resume()
        except psutil.NoSuchProcess:
            continue
    # A session of its own: what is started anew outlives the tests.
    done = subprocess.run(
        [_SCRIPT, "up"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_UP_S, check=False,
        start_new_session=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def _process(part: str) -> psutil.Process:
    """Raises `NoSuchProcess` when there is none: the id may be another's by now."""
    process = psutil.Process(int((_own_kubeconfig().parent / f"{part}.pid").read_text()))
    if not _lives(process) or part not in " ".join(process.cmdline()):
        raise psutil.NoSuchProcess(process.pid, part)
    return process


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
