import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from storage import event_batcher
from storage.engine import Database
from storage.event_batcher import EventBatcher
from storage.statements import Statement
from tests.storage.records import new_project
from workflows.contracts.errors import UnavailableError
from workflows.contracts.events import EventType, NewEvent


class LosesTheAnswer(Database):
    """Writes, and says that the connection broke: once."""

    lost = False

    async def fetch(self, statement: Statement, **values: Any) -> list[asyncpg.Record]:
        answer = await super().fetch(statement, **values)
        if not self.lost:
            self.lost = True
            raise UnavailableError("The answer was lost.")
        return answer


class LosesTheAnswerAndCommitsLate(Database):
    """Says that the connection broke, while the server still works on the commit: once."""

    late: asyncio.Task[None] | None = None

    async def fetch(self, statement: Statement, **values: Any) -> list[asyncpg.Record]:
        if self.late is not None:
            return await super().fetch(statement, **values)
        connection = await self._connect()
        transaction = connection.transaction()
        await transaction.start()
        await connection.fetch(statement.sql, *statement.arguments(values))

        async def commit() -> None:
            await asyncio.sleep(0.3)
            await transaction.commit()
            await connection.close()

        self.late = asyncio.create_task(commit())
        raise UnavailableError("The commit hasn't been answered.")


class IsAway(Database):
    """Refuses everything."""

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        raise UnavailableError("The database doesn't answer.")
        yield


def changed(project_id: int, n: int) -> NewEvent:
    return NewEvent(project_id=project_id, type=EventType.FILE_CHANGED, data={"n": n})


async def stored(database: Database, project_id: int) -> list[int]:
    async with database.reading() as session:
        rows = await session.execute(
            text("SELECT seq, data FROM events WHERE project_id = :id ORDER BY seq"), {"id": project_id}
        )
        found = rows.all()
    assert [row.seq for row in found] == list(range(1, len(found) + 1))
    return [row.data["n"] for row in found]


async def test_put_returns_when_the_event_is_durable(database: Database) -> None:
    project, batcher = await new_project(database), EventBatcher(database)
    await batcher.put(changed(project, 1))

    assert await stored(database, project) == [1]
    await batcher.close()


async def test_what_is_said_in_one_window_is_one_transaction(database: Database) -> None:
    project, batcher = await new_project(database), EventBatcher(database)
    await asyncio.gather(*(batcher.put(changed(project, n)) for n in range(50)))

    async with database.reading() as session:
        transactions = await session.scalar(text("SELECT count(DISTINCT xmin::text) FROM events"))
    assert await stored(database, project) == list(range(50))
    assert transactions is not None
    assert transactions <= 2
    await batcher.close()


@pytest.mark.parametrize("faulty", [LosesTheAnswer, LosesTheAnswerAndCommitsLate])
async def test_a_commit_whose_answer_is_lost_is_not_repeated(database_url: str, faulty: type[Database]) -> None:
    database = faulty(database_url)
    observer = Database(database_url)
    project, batcher = await new_project(observer), EventBatcher(database)
    async with asyncio.timeout(20):
        await asyncio.gather(*(batcher.put(changed(project, n)) for n in range(3)))
        await batcher.put(changed(project, 3))

    assert await stored(observer, project) == [0, 1, 2, 3]
    await batcher.close()
    await database.close()
    await observer.close()


async def test_an_event_of_a_project_that_is_gone_is_dropped_and_the_others_are_not(database: Database) -> None:
    project, batcher = await new_project(database), EventBatcher(database)
    await asyncio.gather(*(batcher.put(changed(project + gone, gone)) for gone in (0, 1, 0)))

    assert await stored(database, project) == [0, 0]
    await batcher.close()


async def test_data_that_is_no_json_fails_its_writer_alone(database: Database) -> None:
    project, batcher = await new_project(database), EventBatcher(database)
    bad = changed(project, 0).model_copy(update={"data": {"n": float("nan")}})
    outcomes = await asyncio.gather(batcher.put(bad), batcher.put(changed(project, 1)), return_exceptions=True)

    assert isinstance(outcomes[0], ValueError)
    assert await stored(database, project) == [1]
    await batcher.close()


async def test_closing_writes_what_waits_and_refuses_what_comes(database: Database) -> None:
    project, batcher = await new_project(database), EventBatcher(database)
    waiting = [asyncio.create_task(batcher.put(changed(project, n))) for n in range(5)]
    await asyncio.sleep(0)
    await batcher.close()

    await asyncio.gather(*waiting)
    assert await stored(database, project) == list(range(5))
    with pytest.raises(UnavailableError):
        await batcher.put(changed(project, 9))


async def test_writers_wait_for_a_place_while_postgres_is_away_and_are_told_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_batcher, "_CAPACITY", 3)
    database = IsAway("postgresql://nobody@127.0.0.1:1/none")
    batcher = EventBatcher(database)
    waiting = [asyncio.create_task(batcher.put(changed(1, n))) for n in range(20)]
    await asyncio.sleep(0.2)
    assert not any(task.done() for task in waiting)
    assert batcher._places.locked()
    await batcher.close(timeout_s=0.1)

    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(outcome, UnavailableError) for outcome in outcomes)


async def test_a_cancelled_put_that_still_waits_is_not_written(database: Database) -> None:
    project, batcher = await new_project(database), EventBatcher(database, window_s=0.2)
    await batcher.put(changed(project, 0))
    given_up = asyncio.create_task(batcher.put(changed(project, 1)))
    kept = asyncio.create_task(batcher.put(changed(project, 2)))
    await asyncio.sleep(0.05)
    given_up.cancel()
    await kept

    assert await stored(database, project) == [0, 2]
    await batcher.close()


async def test_text_joins_a_line_that_waits_and_none_that_is_being_written(database: Database) -> None:
    project = await new_project(database)
    data = {"step": 1, "text": "a"}
    piece = NewEvent(project_id=project, type=EventType.TEXT_DELTA, task_id=str(uuid4()), data=data)
    batcher = EventBatcher(database, window_s=0.2)
    line = batcher.send(piece)
    assert line.join("b")
    assert line.join("c")
    await line.done
    assert not line.join("d")
    await batcher.close()
    async with database.reading() as session:
        assert list(await session.scalars(text("SELECT data->>'text' FROM events"))) == ["abc"]
