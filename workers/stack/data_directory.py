"""`DATA_DIR`: where one stack keeps everything, and what makes it that stack and no other.

run/       `{part}.pid` of each running part, `lock` held by the supervisor
logs/      `{part}.log`, one old one beside each
postgres/  the cluster        temporal.db  Temporal's state
projects/  files of projects  secret-key   made once, 0600
model-port.json  where the scripted model listens
"""

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.settings import MIN_SECRET_BYTES

_FIRST_IDS = 100_000
_ID_RANGE = 900_000


class StackError(RuntimeError):
    """`up` can't go on; the message is for the person who typed it."""


class DataDirectory:
    """The folder of one stack."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.run = self.root / "run"
        self.logs = self.root / "logs"

    @property
    def instance(self) -> str:
        """A name of this stack for what lives outside the folder, such as labels on containers.

        It follows from the path: a folder that was deleted and made anew still knows, and clears, what it left.
        """
        return f"{self._fingerprint():08x}"

    @property
    def first_user_id(self) -> int:
        """Where a second stack's user ids begin, so that its containers and preview hosts have other names."""
        return _FIRST_IDS + self._fingerprint() % _ID_RANGE

    def create(self) -> None:
        """Make the folders that every part expects."""
        for folder in (self.root, self.run):
            folder.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(mode=0o700, exist_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process. Raises `StackError` when another stack runs in it."""
        with self._lock_path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StackError(
                    f"A stack runs in {self.root} already (process {self.supervisor()}). `make down` ends it; "
                    "a second one needs its own DATA_DIR and ports."
                ) from error
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield
            file.truncate(0)

    def supervisor(self) -> int | None:
        """Process id of the supervisor that holds the folder, None when none does."""
        try:
            with self._lock_path.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            return int(self._lock_path.read_text().strip() or 0) or None
        return None

    def secret_key(self) -> str:
        """The stack's own `SECRET_KEY`: made once, readable by its owner alone."""
        path = self.root / "secret-key"
        if not path.exists():
            partial = path.with_suffix(".new")
            partial.unlink(missing_ok=True)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(MIN_SECRET_BYTES + 16))
            partial.rename(path)
        key = path.read_text().strip()
        if len(key.encode()) < MIN_SECRET_BYTES:
            raise StackError(f"{path} is damaged. Restore it: without it nothing that was encrypted can be read.")
        return key

    @property
    def _lock_path(self) -> Path:
        return self.run / "lock"

    def _fingerprint(self) -> int:
        return int(hashlib.sha256(str(self.root.resolve()).encode()).hexdigest()[:8], 16)
