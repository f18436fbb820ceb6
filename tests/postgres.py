"""A Postgres of the tests' own: the stack's server in a throw-away folder, killed and restarted at will."""

import asyncio
import shutil
import tempfile
from pathlib import Path
from urllib.parse import quote

import asyncpg

from workers.stack.postgres import USER, EmbeddedPostgres

_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",  # a killed process loses nothing without it, only a machine without power does
    "full_page_writes": "off",
    "log_min_messages": "fatal",
}


class PostgresServer:
    """Reached through a unix socket in its own folder, so that no two sessions can want the same port."""

    def __init__(self, **settings: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="studio-pg-", dir="/tmp"))
        self._folder.chmod(0o711)
        self._sockets = self._folder / "sockets"
        self._sockets.mkdir()
        self._sockets.chmod(0o777)
        settings = {**_SETTINGS, "unix_socket_directories": str(self._sockets), **settings}
        self._embedded = EmbeddedPostgres(self._folder / "cluster", settings=settings)
        self._embedded.prepare()
        (self._folder / "cluster").chmod(0o711)

    def url(self, database: str = "postgres") -> str:
        password = (self._folder / "cluster" / "password").read_text().strip()
        port = self._embedded.port
        return f"postgresql://{USER}:{password}@/{database}?host={quote(str(self._sockets), safe='')}&port={port}"

    def start(self) -> None:
        """Return when connections are taken."""
        self._embedded.start()

    def kill(self) -> None:
        """`kill -9`: its sessions end by themselves when they notice."""
        process = self._embedded._process
        assert process is not None
        process.kill()
        process.wait(timeout=20)

    def remove(self) -> None:
        self._embedded.stop()
        shutil.rmtree(self._folder)

    async def restart_after_kill(self, pause_s: float = 0.0) -> None:
        self.kill()
        await asyncio.sleep(pause_s)
        await asyncio.to_thread(self.start)

    async def execute(self, statement: str, database: str = "postgres") -> None:
        connection = await asyncpg.connect(self.url(database))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()
