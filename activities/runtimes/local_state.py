"""What is known of a local dev server: files in a folder of its own, and one lock that tells whether it lives."""

import asyncio
import fcntl
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from activities.errors import NameTakenError
from activities.ports import ContainerState, ContainerStatus
from workflows.contracts.names import ProjectRef

_LOCK_S: Final = 60.0
_POLL_S: Final = 0.02
_KILLED: Final = 137


@dataclass(frozen=True)
class Record:
    """What a dev server was made from: `state.json`, in place of a container's labels."""

    user_id: int
    project_id: int
    id: str
    spec_hash: str
    port: int
    started_at: float | None

    @property
    def ref(self) -> ProjectRef:
        """Whose it is."""
        return ProjectRef(self.user_id, self.project_id)


class ServerFolder:
    """One dev server's folder: `state.json`, and what `inside/supervisor.py` writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def box(self) -> Path:
        """The part of it that the sandbox sees."""
        return self.path / "box"

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """Hold the lock of those who start, stop and remove, of all processes; raises `NameTakenError` after long."""
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + _LOCK_S
        try:
            while not _try_lock(descriptor):
                if time.monotonic() > deadline:
                    raise NameTakenError("Another change of this dev server takes very long.")
                await asyncio.sleep(_POLL_S)
            yield
        finally:
            os.close(descriptor)

    def record(self) -> Record | None:
        """What was written at the last launch, None when there was none."""
        value = self._json("state.json")
        return None if value is None else Record(**value)

    def write(self, record: Record) -> None:
        """Write it whole."""
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.path / "state.json.new"
        temporary.write_text(json.dumps(asdict(record)))
        temporary.rename(self.path / "state.json")

    def alive(self) -> bool:
        """Whether its supervisor lives: the kernel frees the lock of a dead one, however it died."""
        try:
            descriptor = os.open(self.path / "alive", os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            return not _try_lock(descriptor)
        finally:
            os.close(descriptor)

    def status(self) -> ContainerStatus | None:
        """As the port tells it."""
        record = self.record()
        if record is None:
            return None
        running = self.alive()
        end = {} if running else self._json("exit.json") or {}
        state = ContainerState.RUNNING if running else ContainerState.EXITED
        return ContainerStatus(
            ref=record.ref,
            id=record.id,
            state=state,
            spec_hash=record.spec_hash,
            started_at=None if record.started_at is None else datetime.fromtimestamp(record.started_at, UTC),
            exit_code=None if running else int(end.get("exit_code", _KILLED)),
            out_of_memory=bool(end.get("out_of_memory", False)),
            address=("127.0.0.1", record.port) if running else None,
        )

    def kill(self) -> None:
        """End it the hard way: its supervisor kills the tree and writes the end down."""
        if self.alive():
            os.kill(int((self.path / "pid").read_text()), signal.SIGTERM)

    async def ended(self, within_s: float) -> bool:
        """Whether it ends in that time."""
        deadline = time.monotonic() + within_s
        while self.alive():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def _json(self, name: str) -> dict[str, Any] | None:
        try:
            value: dict[str, Any] = json.loads((self.path / name).read_text())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return value


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
