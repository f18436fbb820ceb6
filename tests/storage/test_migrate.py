import asyncio
import os
import sys
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, NullPool
from sqlalchemy.ext.asyncio import create_async_engine

from storage.engine import connect
from storage.migrate import migrate
from storage.tables import Table
from tests.postgres import PostgresServer
from workflows.contracts.errors import UnavailableError


@pytest.fixture
async def empty_url(postgres: PostgresServer) -> AsyncIterator[str]:
    name = f"empty_{uuid4().hex}"
    await postgres.execute(f"CREATE DATABASE {name}")
    yield postgres.url(name)
    await postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def revisions(url: str) -> list[str]:
    connection = await connect(url)
    try:
        return [row[0] for row in await connection.fetch("SELECT version_num FROM alembic_version")]
    finally:
        await connection.close()


def _differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_server_default": True})
    return list(compare_metadata(context, Table.metadata))


async def test_the_newest_revision_has_exactly_the_tables_that_the_code_has(database_url: str) -> None:
    engine = create_async_engine(database_url.replace("postgresql:", "postgresql+asyncpg:"), poolclass=NullPool)
    async with engine.connect() as connection:
        assert await connection.run_sync(_differences) == []
    await engine.dispose()


async def test_two_at_once_and_one_more_give_one_migrated_database(empty_url: str) -> None:
    await asyncio.gather(migrate(empty_url), migrate(empty_url), migrate(empty_url))
    once = await revisions(empty_url)
    await migrate(empty_url)

    assert len(once) == 1
    assert await revisions(empty_url) == once


async def test_it_waits_for_a_postgres_that_is_not_there_yet() -> None:
    server = PostgresServer()
    try:
        waiting = asyncio.create_task(migrate(server.url(), wait_s=20))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await asyncio.to_thread(server.start)
        await waiting
        assert await revisions(server.url()) != []
    finally:
        server.remove()


async def test_it_gives_up_when_postgres_stays_away() -> None:
    with pytest.raises(UnavailableError):
        await migrate("postgresql://postgres@127.0.0.1:1/none", wait_s=0.2)


async def test_it_runs_as_a_program(empty_url: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "storage.migrate", env={**os.environ, "DATABASE_URL": empty_url}
    )
    async with asyncio.timeout(30):
        assert await process.wait() == 0
    assert await revisions(empty_url) != []
