import asyncio

import asyncpg
import pytest
from sqlalchemy import BigInteger, Float, bindparam, func, select, text
from sqlalchemy.exc import ProgrammingError

from storage.engine import Database, connect, plain_dsn
from storage.statements import Statement
from storage.tables import User
from tests.postgres import PostgresServer
from workflows.contracts.errors import UnavailableError

ECHO = Statement(select(bindparam("value", type_=BigInteger).label("id")))
SLEEP = Statement(select(func.pg_sleep(bindparam("seconds", type_=Float))))


async def count_users(database: Database) -> int:
    async with database.transaction() as session:
        return int((await session.execute(text("SELECT count(*) FROM users"))).scalar_one())


async def add_user(database: Database, email: str, *, fail: bool = False) -> None:
    async with database.transaction() as session:
        await session.execute(text("INSERT INTO users (email, password_hash) VALUES (:email, '')"), {"email": email})
        if fail:
            raise LookupError


async def backend_pid(database: Database) -> int:
    async with database.reading() as session:
        return int((await session.execute(text("SELECT pg_backend_pid()"))).scalar_one())


async def terminate(database: Database, pid: object) -> None:
    admin = await connect(database.dsn)
    await admin.execute("SELECT pg_terminate_backend($1, 5000)", pid)
    await admin.close()


def test_a_url_is_read_with_and_without_its_driver() -> None:
    assert plain_dsn("postgresql+asyncpg://u:p%40ss@h:5/db") == "postgresql://u:p%40ss@h:5/db"
    assert plain_dsn("postgresql://u@/db?host=/run/x") == "postgresql://u@/db?host=%2Frun%2Fx"


async def test_a_transaction_commits_at_its_end_and_rolls_back_on_an_exception(database: Database) -> None:
    await add_user(database, "kept@example.com")
    with pytest.raises(LookupError):
        await add_user(database, "dropped@example.com", fail=True)

    assert await count_users(database) == 1


async def test_a_wrong_statement_is_not_taken_for_an_outage(database: Database) -> None:
    with pytest.raises(ProgrammingError):
        async with database.transaction() as session:
            await session.execute(text("SELECT nothing_like_this"))


async def test_reading_needs_one_round_trip_and_no_transaction(database: Database) -> None:
    async with database.reading() as session:
        first = await session.scalar(text("SELECT now()"))
        await asyncio.sleep(0.01)
        second = await session.scalar(text("SELECT now()"))

    assert first is not None
    assert second > first, "inside one transaction now() stands still"


async def test_a_refused_connection_is_an_outage() -> None:
    database = Database("postgresql://postgres@127.0.0.1:1/none")
    with pytest.raises(UnavailableError):
        await count_users(database)
    with pytest.raises(UnavailableError):
        await connect(database.dsn)
    await database.close()


async def test_a_connection_closed_in_mid_use_is_an_outage_and_the_next_one_works(database: Database) -> None:
    async def be_closed() -> None:
        async with database.transaction() as session:
            await terminate(database, await session.scalar(text("SELECT pg_backend_pid()")))
            await session.execute(text("SELECT 1"))

    with pytest.raises(UnavailableError):
        await be_closed()

    assert await count_users(database) == 0


async def test_a_pooled_connection_that_died_unseen_is_replaced_without_an_error(database: Database) -> None:
    before = await backend_pid(database)
    await terminate(database, before)

    assert await backend_pid(database) != before


async def test_an_exhausted_pool_is_an_outage_in_bounded_time(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.engine._POOL_TIMEOUT_S", 0.1)
    database = Database(database_url, pool_size=1)
    async with database.transaction() as session:
        await session.execute(text("SELECT 1"))
        with pytest.raises(UnavailableError):
            await count_users(database)
    await database.close()


async def test_a_statement_over_its_time_is_an_outage(database: Database) -> None:
    async def sleep_too_long() -> None:
        async with database.transaction() as session:
            await session.execute(text("SET LOCAL statement_timeout = '50ms'"))
            await session.execute(text("SELECT pg_sleep(5)"))

    with pytest.raises(UnavailableError):
        await sleep_too_long()


async def test_a_killed_postgres_gives_outages_while_it_is_away_and_none_afterwards(
    own_postgres: PostgresServer,
) -> None:
    database = Database(own_postgres.url())

    async def ask() -> int:
        async with database.transaction() as session:
            return int((await session.execute(text("SELECT 1"))).scalar_one())

    assert await asyncio.gather(*(ask() for _ in range(10))) == [1] * 10
    own_postgres.kill()
    with pytest.raises(UnavailableError):
        await ask()
    await asyncio.to_thread(own_postgres.start)

    assert await asyncio.gather(*(ask() for _ in range(10))) == [1] * 10
    await database.close()


async def test_a_prepared_read_goes_on_after_its_connection_was_cut(database: Database) -> None:
    assert [row["id"] for row in await database.fetch(ECHO, value=5)] == [5]
    for _ in range(3):
        await terminate(database, await backend_pid(database))
        assert (await database.fetch(ECHO, value=6))[0]["id"] == 6


async def test_a_killed_postgres_gives_outages_to_prepared_reads_and_none_afterwards(
    own_postgres: PostgresServer,
) -> None:
    database = Database(own_postgres.url())

    async def ask() -> int:
        return int((await database.fetch(ECHO, value=1))[0]["id"])

    assert await asyncio.gather(*(ask() for _ in range(30))) == [1] * 30
    sleeping = asyncio.create_task(database.fetch(SLEEP, seconds=30.0))
    await asyncio.sleep(0.3)
    own_postgres.kill()
    for asked in (sleeping, ask(), ask()):
        with pytest.raises(UnavailableError):
            await asked
    await asyncio.to_thread(own_postgres.start)

    assert await asyncio.gather(*(ask() for _ in range(30))) == [1] * 30
    await database.close()


async def test_a_prepared_read_waits_for_a_free_connection_and_no_longer_than_the_pool_does(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.engine._POOL_TIMEOUT_S", 0.2)
    database = Database(database_url, pool_size=1)
    sleeping = asyncio.create_task(database.fetch(SLEEP, seconds=0.6))
    await asyncio.sleep(0.1)
    with pytest.raises(UnavailableError):
        await database.fetch(ECHO, value=1)
    await sleeping
    assert len(await database.fetch(ECHO, value=1)) == 1
    await database.close()


async def test_a_cancelled_prepared_read_leaves_the_pool_whole(database_url: str) -> None:
    database = Database(database_url, pool_size=1)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await database.fetch(SLEEP, seconds=10.0)
        assert (await database.fetch(ECHO, value=2))[0]["id"] == 2
    await database.close()


async def test_a_prepared_read_leaves_no_transaction_and_takes_part_in_none(database: Database) -> None:
    with pytest.raises(asyncpg.InvalidArgumentForLogarithmError):
        await database.fetch(Statement(select(func.ln(bindparam("value", type_=Float)))), value=-1.0)
    async with database.transaction() as session:
        assert await session.scalar(text("SELECT 1")) == 1
    assert (await database.fetch(ECHO, value=3))[0]["id"] == 3


def test_a_prepared_statement_holds_no_value_of_its_own() -> None:
    with pytest.raises(ValueError, match="named values"):
        Statement(select(User.id).where(User.id == 5))
    with pytest.raises(KeyError):
        ECHO.arguments({})


async def test_a_database_that_is_not_there_is_a_mistake_and_not_an_outage(postgres: PostgresServer) -> None:
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await connect(postgres.url("no_such_database"))
