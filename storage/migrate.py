"""Bring a database to today's tables: waits for Postgres, one process at a time, nothing to do is success.

python -m storage.migrate                   # DATABASE_URL to the newest revision
python -m storage.migrate new "Add a noun"  # write a revision from the difference to storage/tables.py
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine

from storage.engine import connect, plain_dsn
from workflows.contracts.errors import UnavailableError

_FOLDER: Final = Path(__file__).parent / "migrations"
_LOCK_KEY: Final = 0x5354_5544_494F  # "STUDIO": any number that nobody else locks in this database
_FIRST_DELAY_S: Final = 0.05
_LONGEST_DELAY_S: Final = 2.0


async def migrate(url: str, *, wait_s: float = 60) -> None:
    """Run every migration that the database hasn't seen, in one transaction: all or none.

    Waits up to `wait_s` for Postgres to answer, then raises `UnavailableError`. Of several processes at once one
    migrates and the others wait for it.
    """
    await _with_connection(url, wait_s, _upgrade)


async def new_revision(url: str, message: str) -> None:
    """Write a revision file with what `storage/tables.py` has and the migrated database lacks."""
    number = len(list(ScriptDirectory(str(_FOLDER)).walk_revisions())) + 1

    def generate(connection: Connection) -> None:
        command.revision(_config(connection), message, autogenerate=True, rev_id=f"{number:04}")

    await migrate(url)
    await _with_connection(url, 0, generate)


async def _with_connection(url: str, wait_s: float, work: Callable[[Connection], None]) -> None:
    dsn = plain_dsn(url)
    deadline = time.monotonic() + wait_s

    async def patient() -> asyncpg.Connection:
        return await _connect_by(dsn, deadline)

    engine = create_async_engine("postgresql+asyncpg://", async_creator=patient, poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(work)
    finally:
        await engine.dispose()


async def _connect_by(dsn: str, deadline: float) -> asyncpg.Connection:
    delay = _FIRST_DELAY_S
    while True:
        try:
            return await connect(dsn, command_timeout_s=None)
        except UnavailableError:
            if time.monotonic() + delay > deadline:
                raise
        await asyncio.sleep(delay)
        delay = min(2 * delay, _LONGEST_DELAY_S)


def _upgrade(connection: Connection) -> None:
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    # The turn may take as long as another's migration does; a busy table's lock must not stop all traffic for long.
    connection.execute(text("SET LOCAL lock_timeout = 0"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
    connection.execute(text("SET LOCAL lock_timeout = '30s'"))
    command.upgrade(_config(connection), "head")


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _main(arguments: list[str]) -> None:
    url = os.environ.get("DATABASE_URL")
    if not url:
        sys.exit("DATABASE_URL isn't set, e.g. postgresql://user:password@localhost:5432/studio")
    match arguments:
        case []:
            asyncio.run(migrate(url))
        case ["new", message]:
            asyncio.run(new_revision(url, message))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    _main(sys.argv[1:])
