"""Leases: taken, prolonged, never shortened, given back; and a project that goes meanwhile."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from storage import leases, projects
from storage.engine import Database
from storage.projects import ProjectRecord
from tests.storage.records import new_dev_server
from workflows.contracts.dev_servers import LeaseKind


async def take(database: Database, project: ProjectRecord, kind: LeaseKind, ttl_s: float | None) -> None:
    async with database.transaction() as session:
        await leases.renew(session, project.id, kind, "holder", ttl_s)


async def held(database: Database, project: ProjectRecord) -> list[tuple[str, datetime | None]]:
    async with database.transaction() as session:
        return [(lease.kind, lease.expires_at) for lease in await leases.held(session, project.id)]


async def test_an_expired_lease_is_not_held(database: Database) -> None:
    project = await new_dev_server(database)
    await take(database, project, LeaseKind.PREVIEW, -1)
    await take(database, project, LeaseKind.START, 60)

    [(kind, expires_at)] = await held(database, project)
    assert kind == "start"
    assert expires_at is not None
    assert timedelta(seconds=50) < expires_at - datetime.now(UTC) < timedelta(seconds=70)


@pytest.mark.parametrize(("first", "then"), [(3600, 60), (60, 3600)])
async def test_a_lease_is_prolonged_and_never_shortened(database: Database, first: float, then: float) -> None:
    project = await new_dev_server(database)
    await take(database, project, LeaseKind.FILES, first)
    await take(database, project, LeaseKind.FILES, then)

    [(_, expires_at)] = await held(database, project)
    assert expires_at is not None
    assert expires_at - datetime.now(UTC) > timedelta(minutes=50)


async def test_a_lease_without_an_end_stays_until_it_is_given_back(database: Database) -> None:
    project = await new_dev_server(database)
    await take(database, project, LeaseKind.PIN, None)
    await take(database, project, LeaseKind.PIN, 60)
    assert await held(database, project) == [("pin", None)]

    async with database.transaction() as session:
        await leases.release(session, project.id, LeaseKind.PIN, "holder")
        await leases.release(session, project.id, LeaseKind.PIN, "holder")
    assert await held(database, project) == []


async def test_a_stop_gives_back_what_traffic_held_alone(database: Database) -> None:
    project = await new_dev_server(database)
    for kind in LeaseKind:
        await take(database, project, kind, 60)
    async with database.transaction() as session:
        await leases.release_all(session, project.id)

    assert {kind for kind, _ in await held(database, project)} == {"task", "approval", "pin"}


async def test_renewals_while_the_project_is_deleted_neither_deadlock_nor_leave_a_lease(database: Database) -> None:
    """A deadlock would surface as `UnavailableError`."""

    async def delete(project: ProjectRecord) -> None:
        async with database.transaction() as session:
            await projects.delete(session, project.id)

    for _ in range(15):
        project = await new_dev_server(database)
        async with asyncio.timeout(20):
            await asyncio.gather(
                *(take(database, project, LeaseKind.PREVIEW, 60) for _ in range(4)),
                delete(project),
                *(take(database, project, LeaseKind.FILES, 60) for _ in range(4)),
            )
        assert await held(database, project) == []
