"""A port that a part chooses for itself, so that a second stack needs no setting for it."""

import itertools
import json
import secrets
import socket
from pathlib import Path

from workers.stack.data_directory import StackError

_PORTS = 10_000


def choose_port(note: Path, *, first: int) -> int:
    """The port noted in `note` while it is free, else a free one of the 10,000 from `first` on, which is noted.

    A restart finds the port of last time, so that addresses given out before it stay right; keep the range below the
    one that the kernel gives to outgoing connections. Raises `StackError` when none is free.
    """
    candidates = (first + secrets.randbelow(_PORTS) for _ in range(_PORTS))
    known = [noted_port(note)] if note.exists() else []
    for port in itertools.chain(known, candidates):
        if is_free(port):
            note.write_text(json.dumps({"port": port}))
            return port
    raise StackError(f"No port from {first} to {first + _PORTS} is free.")


def noted_port(note: Path) -> int:
    """The port that was chosen."""
    return int(json.loads(note.read_text())["port"])


def is_free(port: int) -> bool:
    """Whether one may listen at this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
