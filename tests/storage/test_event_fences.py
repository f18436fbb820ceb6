"""Who may speak of a step: the attempt that was scheduled last, whoever asks last."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from storage import agent_tasks, event_fences, projects, task_requests
from storage.engine import Database
from storage.event_fences import FencedOffError
from storage.task_requests import NewTask
from tests.storage.records import new_project
from workflows.contracts.agent_tasks import ApprovalMode, TaskMode
from workflows.contracts.events import EventFence

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


async def new_task(database: Database) -> UUID:
    project_id = await new_project(database)
    async with database.transaction() as session:
        project = await projects.get(session, project_id)
        assert project is not None
        new = NewTask(
            user_id=project.user_id,
            project_id=project_id,
            chat_id=None,
            mode=TaskMode.AGENT,
            prompt="Make it blue.",
            model="scripted",
            tools=None,
            approval_mode=ApprovalMode.AUTO,
            max_steps=10,
            budget_usd=None,
        )
        return (await task_requests.create(session, new)).task.id


async def claim(database: Database, task_id: UUID, since: datetime) -> tuple[EventFence, bool]:
    async with database.transaction() as session:
        task = await agent_tasks.lock(session, task_id)
        assert task is not None
        return await event_fences.claim(session, task.project_id, task_id, "step:1", since=since)


async def test_the_last_claim_of_those_scheduled_last_stands(database: Database) -> None:
    task_id = await new_task(database)
    first, is_first = await claim(database, task_id, NOW)
    again, is_again_first = await claim(database, task_id, NOW)
    later, _ = await claim(database, task_id, NOW + timedelta(milliseconds=200))
    assert (is_first, is_again_first) == (True, False)
    with pytest.raises(FencedOffError):
        await claim(database, task_id, NOW)
    async with database.reading() as session:
        stand = [await event_fences.stands(session, task_id, fence) for fence in (first, again, later)]
    assert stand == [False, False, True]
