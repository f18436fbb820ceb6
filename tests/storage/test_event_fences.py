"""Who may speak of a step: the attempt that was scheduled last, whoever asks last."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import text

from storage import agent_tasks, event_fences, event_log, projects, task_requests
from storage.engine import Database
from storage.event_batcher import EventBatcher
from storage.event_fences import FencedOffError
from storage.task_requests import NewTask
from tests.storage.records import new_project
from workflows.contracts.agent_tasks import ApprovalMode, TaskMode
from workflows.contracts.events import EventFence, EventType, NewEvent

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


async def attempt(database: Database, batcher: EventBatcher, task_id: UUID, ends: bool) -> None:
    """Claim the step and say so in the log, then tell until another attempt has taken over; or end all claims."""
    async with database.transaction() as session:
        task = await agent_tasks.lock(session, task_id)
        assert task is not None
        if ends:
            await event_fences.lift(session, task.project_id, task_id)
            fence = EventFence(subject="step:1", token="nobody's")
        else:
            fence, _ = await event_fences.claim(session, task.project_id, task_id, "step:1", since=datetime.now(UTC))
        said = NewEvent(
            project_id=task.project_id, type=EventType.STEP_RESET, task_id=str(task_id), data={"token": fence.token}
        )
        event_log.append(session, [said])
    if ends:
        return
    with suppress(FencedOffError):
        for n in range(1000):
            await batcher.put(
                said.model_copy(update={"type": EventType.TOOL_OUTPUT, "data": {**said.data, "n": n}, "fence": fence})
            )


async def test_nothing_is_told_by_an_attempt_after_its_successor_has_begun(database: Database) -> None:
    """Two processes' batchers, four tasks, and attempts that take over from each other all the time."""
    tasks = [await new_task(database) for _ in range(4)]
    batchers = [EventBatcher(database, window_s=0.001) for _ in range(2)]
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for n in range(120):
            telling = attempt(database, batchers[n % 2], tasks[n % 4], ends=n >= 116 or n % 29 == 28)
            group.create_task(telling)
            await asyncio.sleep(0.015)
    for batcher in batchers:
        await batcher.close()

    told = 0
    for task_id in tasks:
        async with database.reading() as session:
            rows = await session.execute(
                text("SELECT type, data FROM events WHERE task_id = :id ORDER BY seq"), {"id": task_id}
            )
        standing = None
        for kind, data in rows:
            if kind == EventType.STEP_RESET:
                standing = data["token"]
            elif kind == EventType.TOOL_OUTPUT:
                told += 1
                assert data["token"] == standing
    assert told > 100
