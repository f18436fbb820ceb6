"""The deletion of a user: every project by `DeleteProject`, the row last, and no project that slips in is orphaned."""

from typing import Any, cast

import pytest
from sqlalchemy import text
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.offboarding import Offboarding
from storage import projects, users
from storage.engine import Database
from tests.storage.records import new_project
from workflows.contracts.offboarding import OffboardInput


class StartedWorkflows:
    """Notes what is started; nothing runs."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    async def start_workflow(self, *_: Any, **options: Any) -> None:
        self.ids.append(options["id"])


@pytest.fixture
async def user_id(database: Database) -> int:
    async with database.transaction() as session:
        user = await users.create(session, email="ann@example.com", name=None, password_hash="")
        await users.leave(session, user.id)
        return user.id


async def test_every_project_is_deleted_and_waited_for(database: Database, user_id: int) -> None:
    mine, theirs = [await new_project(database, user_id) for _ in range(2)], await new_project(database)
    client = StartedWorkflows()
    offboarding = Offboarding(database, cast("Client", client))
    user = OffboardInput(user_id=user_id)
    for _ in range(2):  # the second time, operations and states are as they should be
        with pytest.raises(ApplicationError) as caught:
            await ActivityEnvironment().run(offboarding.delete_user_projects, user)
        assert not caught.value.non_retryable
    assert set(client.ids) == {f"delete-project-{project_id}" for project_id in mine}
    async with database.transaction() as session:
        states = {(row.id, row.state) for row in await session.execute(text("SELECT id, state FROM projects"))}
        assert states == {(mine[0], "deleting"), (mine[1], "deleting"), (theirs, "ready")}
        assert await session.scalar(text("SELECT count(*) FROM operations WHERE state = 'running'")) == 2
        for project_id in mine:
            await projects.delete(session, project_id)
    await ActivityEnvironment().run(offboarding.delete_user_projects, user)


async def test_the_row_goes_only_when_no_project_is_left_and_only_of_who_is_leaving(
    database: Database, user_id: int
) -> None:
    offboarding = Offboarding(database, cast("Client", StartedWorkflows()))
    user = OffboardInput(user_id=user_id)
    project_id = await new_project(database, user_id)
    assert await ActivityEnvironment().run(offboarding.remove_user, user) is False
    async with database.transaction() as session:
        await projects.delete(session, project_id)
    assert await ActivityEnvironment().run(offboarding.remove_user, user) is True
    assert await ActivityEnvironment().run(offboarding.remove_user, user) is True
    async with database.transaction() as session:
        assert await users.find_by_email(session, "ann@example.com") is None
        staying = await users.create(session, email="bob@example.com", name=None, password_hash="")
    with pytest.raises(ApplicationError) as caught:
        await ActivityEnvironment().run(offboarding.remove_user, OffboardInput(user_id=staying.id))
    assert caught.value.non_retryable
