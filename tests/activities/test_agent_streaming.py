"""A step's text, told while the database is quick, slow, and another attempt's."""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import text

from activities.agent.streaming import TextTeller
from storage.engine import Database
from storage.event_batcher import EventBatcher
from storage.event_fences import FencedOffError
from storage.statements import Statement
from tests.storage.records import new_project
from workflows.contracts.agent_tasks import TaskStepInput
from workflows.contracts.events import EventFence


class IsSlow(Database):
    """Takes half a second for each statement."""

    async def fetch(self, statement: Statement, **values: Any) -> list[asyncpg.Record]:
        await asyncio.sleep(0.5)
        return await super().fetch(statement, **values)


async def claimed(database: Database) -> tuple[TaskStepInput, EventFence]:
    """A step of a task that needs no row, and the claim on it."""
    project_id, task_id, token = await new_project(database), uuid4(), uuid4()
    async with database.transaction() as session:
        await session.execute(text("SET LOCAL session_replication_role = replica"))  # no task's row
        await session.execute(
            text("INSERT INTO event_fences (task_id, subject, token) VALUES (:task_id, 'step:1', :token)"),
            {"task_id": task_id, "token": token},
        )
    step = TaskStepInput(user_id=1, project_id=project_id, task_id=str(task_id), step=1)
    return step, EventFence(subject="step:1", token=str(token))


async def told(database: Database) -> Sequence[str]:
    async with database.reading() as session:
        return (await session.scalars(text("SELECT data->>'text' FROM events ORDER BY seq"))).all()


async def test_what_comes_while_the_database_is_slow_is_few_events_and_all_of_it(database_url: str) -> None:
    database = IsSlow(database_url)
    step, fence = await claimed(database)
    batcher = EventBatcher(database)
    teller = TextTeller(batcher, step, fence)
    for n in range(200):
        teller.add(f"t{n} ")
        await asyncio.sleep(0.005)
    await teller.flush()

    pieces = await told(database)
    assert "".join(pieces) == teller.text == "".join(f"t{n} " for n in range(200))
    assert len(pieces) <= 5
    await batcher.close()
    await database.close()


async def test_a_step_that_another_attempt_has_claimed_says_no_more(database: Database) -> None:
    step, fence = await claimed(database)
    batcher = EventBatcher(database)
    teller = TextTeller(batcher, step, fence.model_copy(update={"token": str(uuid4())}))
    teller.add("late")
    with pytest.raises(FencedOffError):
        await teller.flush()
    with pytest.raises(FencedOffError):
        teller.add("later")
    assert await told(database) == []
    await batcher.close()
