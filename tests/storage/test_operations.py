"""Operations: seen by their owner, ended once, told when they change."""

import asyncio
from typing import Any
from uuid import uuid4

from storage import operations
from storage.engine import Database, connect
from storage.operations import CHANNEL, OperationRecord
from storage.projects import ProjectRecord
from tests.storage.records import new_dev_server
from workflows.contracts.operations import OperationKind

PROVISION, DELETE = OperationKind.PROVISION_PROJECT, OperationKind.DELETE_PROJECT
FAULT = {"code": "git_failed", "detail": "No such repository.", "retryable": False}


async def begin(database: Database, project: ProjectRecord, kind: OperationKind) -> OperationRecord:
    async with database.transaction() as session:
        return await operations.create(session, user_id=project.user_id, project_id=project.id, kind=kind)


async def finish(database: Database, operation: OperationRecord, error: dict[str, Any] | None = None) -> None:
    async with database.transaction() as session:
        await operations.finish(session, operation.id, error)


async def seen(database: Database, operation: OperationRecord, user_id: int) -> OperationRecord | None:
    async with database.transaction() as session:
        return await operations.get(session, operation.id, user_id=user_id)


async def test_it_is_its_owners_alone(database: Database) -> None:
    project, other = await new_dev_server(database), await new_dev_server(database)
    operation = await begin(database, project, PROVISION)

    assert await seen(database, operation, project.user_id) == operation
    assert (operation.state, operation.error, operation.ended_at) == ("running", None, None)
    assert await seen(database, operation, other.user_id) is None


async def test_of_many_ends_at_once_one_counts(database: Database) -> None:
    project = await new_dev_server(database)
    operation = await begin(database, project, PROVISION)
    await asyncio.gather(*(finish(database, operation, fault) for fault in (None, FAULT, None, FAULT)))
    ended = await seen(database, operation, project.user_id)
    await finish(database, operation, FAULT)
    await finish(database, operation)

    assert ended is not None
    assert (ended.state, ended.error) in [("succeeded", None), ("failed", FAULT)]
    assert await seen(database, operation, project.user_id) == ended


async def test_the_newest_that_runs_is_found(database: Database) -> None:
    project, other = await new_dev_server(database), await new_dev_server(database)
    await begin(database, other, PROVISION)
    first, second, third = [await begin(database, project, PROVISION) for _ in range(3)]
    await finish(database, third)

    async with database.transaction() as session:
        assert await operations.running(session, project.id, PROVISION) == second
        assert await operations.running(session, project.id, DELETE) is None
        await operations.finish(session, second.id)
        assert await operations.running(session, project.id, PROVISION) == first


async def test_a_deletion_ends_all_others_of_its_project(database: Database) -> None:
    project, other = await new_dev_server(database), await new_dev_server(database)
    kept, ended, running = (
        await begin(database, project, DELETE),
        await begin(database, project, PROVISION),
        await begin(database, project, PROVISION),
    )
    theirs = await begin(database, other, PROVISION)
    await finish(database, ended)
    async with database.transaction() as session:
        await operations.abandon(session, project.id, but=kept.id)

    async def state(operation: OperationRecord, user_id: int) -> tuple[str, str | None]:
        now = await seen(database, operation, user_id)
        assert now is not None
        return now.state, now.error["code"] if now.error else None

    assert [await state(operation, project.user_id) for operation in (kept, ended, running)] == [
        ("running", None),
        ("succeeded", None),
        ("failed", "project_deleted"),
    ]
    assert await state(theirs, other.user_id) == ("running", None)


async def test_a_change_is_told_and_what_changes_nothing_is_not(database: Database) -> None:
    project = await new_dev_server(database)
    operation = await begin(database, project, PROVISION)
    told: asyncio.Queue[str] = asyncio.Queue()
    connection = await connect(database.dsn)
    await connection.add_listener(CHANNEL, lambda *note: told.put_nowait(note[-1]))
    async with database.transaction() as session:
        assert await operations.set_stage(session, operation.id, "creating_files")
        assert not await operations.set_stage(session, uuid4(), "creating_files")
    async with database.transaction() as session:
        assert not await operations.set_stage(session, operation.id, "creating_files")
    await finish(database, operation)
    await finish(database, operation)
    async with database.transaction() as session:
        assert not await operations.set_stage(session, operation.id, "finishing")

    async with asyncio.timeout(10):
        assert [await told.get(), await told.get()] == [str(operation.id)] * 2
    await asyncio.sleep(0.2)
    assert told.empty()
    await connection.close()
