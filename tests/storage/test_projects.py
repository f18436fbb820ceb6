"""Projects: each state after its own, told once, and as many as a user may have."""

import asyncio

import pytest
from sqlalchemy import text

from storage import event_log, leases, projects, users
from storage.engine import Database
from storage.projects import NewProject, ProjectRecord
from tests.storage.records import command, log_of, new_dev_server
from workflows.contracts.dev_servers import DevServerAction, LeaseKind
from workflows.contracts.errors import ConflictError, NotFoundError
from workflows.contracts.events import EventType, NewEvent
from workflows.contracts.projects import ProjectState

PROVISIONING, READY = ProjectState.PROVISIONING, ProjectState.READY
GONE, DELETING = ProjectState.FAILED, ProjectState.DELETING

FOLLOWS = {
    (PROVISIONING, PROVISIONING), (PROVISIONING, READY), (PROVISIONING, GONE), (PROVISIONING, DELETING),
    (READY, READY), (READY, DELETING),
    (GONE, GONE), (GONE, DELETING),
}  # fmt: skip


async def in_state(database: Database, state: ProjectState) -> ProjectRecord:
    project = await new_dev_server(database)
    async with database.transaction() as session:
        await session.execute(
            text("UPDATE projects SET state = :state WHERE id = :id"), {"state": state, "id": project.id}
        )
    return project


async def set_state(database: Database, project: ProjectRecord, state: ProjectState, stage: str | None = None) -> bool:
    async with database.transaction() as session:
        return await projects.set_state(session, project.id, state, stage=stage)


@pytest.mark.parametrize("found", list(ProjectState))
@pytest.mark.parametrize("state", list(ProjectState))
async def test_a_state_follows_its_own_only_and_the_same_is_told_once(
    database: Database, found: ProjectState, state: ProjectState
) -> None:
    project = await in_state(database, found)
    before = await log_of(database, project.id)
    allowed = (found, state) in FOLLOWS

    assert await set_state(database, project, state) == allowed
    told = (await log_of(database, project.id))[len(before) :]
    assert [data["state"] for _, _, data in told] == ([state] if allowed and state != found else [])
    async with database.transaction() as session:
        now = await projects.get(session, project.id)
    assert now is not None
    assert now.state == (state if allowed else found)


async def test_a_stage_is_told_while_the_state_stays(database: Database) -> None:
    project = await in_state(database, PROVISIONING)
    assert await set_state(database, project, PROVISIONING, stage="creating_files")

    [*_, (_, kind, data)] = await log_of(database, project.id)
    assert (kind, data) == (
        "project.state",
        {"state": "provisioning", "reason": None, "stage": "creating_files"},
    )


async def test_creations_at_once_do_not_pass_the_limit_together(database: Database) -> None:
    async with database.transaction() as session:
        user = await users.create(session, email="ann@example.com", name=None, password_hash="")

    async def create() -> ProjectRecord:
        async with database.transaction() as session:
            return await projects.create(session, NewProject(user.id, "p", template="static"), limit=5)

    results = await asyncio.gather(*(create() for _ in range(20)), return_exceptions=True)
    made = [result for result in results if isinstance(result, ProjectRecord)]
    refused = [result.code for result in results if isinstance(result, ConflictError)]
    assert len({project.id for project in made}) == 5
    assert refused == ["project_limit"] * 15


async def test_one_of_two_deletions_at_once_is_the_first(database: Database) -> None:
    project = await in_state(database, READY)
    results = await asyncio.gather(*(set_state(database, project, DELETING) for _ in range(5)))

    assert sorted(results) == [False] * 4 + [True]
    assert [data["state"] for _, _, data in await log_of(database, project.id)][-2:] == ["ready", "deleting"]


async def test_a_deletion_takes_all_rows_but_the_operations_and_succeeds_twice(database: Database) -> None:
    project, other = await in_state(database, READY), await in_state(database, READY)
    for each in (project, other):
        await command(database, each, DevServerAction.START)
        async with database.transaction() as session:
            await leases.renew(session, each.id, LeaseKind.PIN, "pin", None)
    for _ in range(2):
        async with database.transaction() as session:
            await projects.delete(session, project.id)

    async with database.reading() as session:
        for table, column in (("projects", "id"), ("dev_servers", "project_id"), ("leases", "project_id"),
                              ("events", "project_id"), ("operations", "project_id")):  # fmt: skip
            rows = await session.scalars(text(f"SELECT DISTINCT {column} FROM {table} ORDER BY 1"))
            left = [project.id, other.id] if table == "operations" else [other.id]
            assert list(rows) == left, table


async def test_what_comes_after_a_deletion_finds_nothing(database: Database) -> None:
    project = await in_state(database, READY)
    async with database.transaction() as session:
        await projects.delete(session, project.id)

    assert not await set_state(database, project, READY)
    async with database.transaction() as session:
        assert await projects.lock(session, project.id) is None
        assert await projects.get(session, project.id) is None
        await leases.renew(session, project.id, LeaseKind.PIN, "pin", None)
        assert await leases.held(session, project.id) == []
    with pytest.raises(NotFoundError):
        async with database.transaction() as session:
            event_log.append(session, [NewEvent(project_id=project.id, type=EventType.FILE_CHANGED, data={})])
