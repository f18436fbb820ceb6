"""Parts that every room's tests stand on: a Postgres of their own, and a fresh migrated database for each test."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest

from storage.engine import Database
from storage.migrate import migrate
from tests.measuring import pytest_terminal_summary  # noqa: F401 -- pytest finds its hooks here
from tests.needs import pytest_runtest_setup  # noqa: F401 -- and this one
from tests.postgres import PostgresServer
from tests.scheduling import pytest_xdist_make_scheduler  # noqa: F401 -- and this one

TEMPLATE = "studio_template"


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server for this session (and xdist worker), with a migrated template database. Don't kill it: others use it."""
    server = PostgresServer()
    try:
        server.start()
        asyncio.run(server.execute(f"CREATE DATABASE {TEMPLATE}"))
        asyncio.run(migrate(server.url(TEMPLATE)))
        yield server
    finally:
        server.remove()


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server for this test alone, running, to be killed at will; its databases are empty."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def postgres_url(postgres: PostgresServer) -> str:
    """The server's maintenance database; create your own ones beside it."""
    return postgres.url()


@pytest.fixture
async def database_url(postgres: PostgresServer) -> AsyncIterator[str]:
    """A fresh migrated database, dropped afterwards."""
    name = f"test_{uuid4().hex}"
    await postgres.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    yield postgres.url(name)
    await postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A pool on a fresh migrated database."""
    pool = Database(database_url)
    yield pool
    await pool.close()
