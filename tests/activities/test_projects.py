"""Provisions that are tried again, at once, or long after their time: one project, told once."""

import asyncio
from pathlib import Path
from typing import cast

import pytest
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.files.store import DiskFileStore
from activities.ports import Runtime
from activities.projects import Projects
from storage import operations, projects, users
from storage.engine import Database
from storage.projects import NewProject
from tests.storage.records import log_of
from workflows.contracts.operations import OperationKind
from workflows.contracts.projects import ProjectInput, ProjectState, ProvisionFailure

PROVISION = OperationKind.PROVISION_PROJECT


class Bench:
    """A project whose provision has begun."""

    def __init__(self, database: Database, files: DiskFileStore, template: Path, project: ProjectInput) -> None:
        nobody = cast("Client", None), cast("Runtime", None)
        self.database = database
        self.files = files
        self.project = project
        self.activities = Projects(database, files, nobody[1], nobody[0], {"static": template})

    async def create_files(self) -> None:
        await ActivityEnvironment().run(self.activities.create_project_files, self.project)

    async def finish(self) -> None:
        await ActivityEnvironment().run(self.activities.finish_provision, self.project)

    async def fail(self) -> None:
        failure = ProvisionFailure(project=self.project, code="git_failed", detail="No such repository.")
        await ActivityEnvironment().run(self.activities.fail_provision, failure)

    async def told(self) -> list[tuple[str, str | None]]:
        log = await log_of(self.database, self.project.project_id)
        return [(data["state"], data["stage"]) for _, _, data in log]


@pytest.fixture
async def bench(database: Database, tmp_path: Path) -> Bench:
    template = tmp_path / "template"
    template.mkdir()
    (template / "index.html").write_text("hello")
    async with database.transaction() as session:
        user = await users.create(session, email="ann@example.com", name=None, password_hash="")
        record = await projects.create(session, NewProject(user.id, "p", template="static"), limit=10)
        operation = await operations.create(session, user_id=user.id, project_id=record.id, kind=PROVISION)
    project = ProjectInput(user_id=user.id, project_id=record.id, operation_id=str(operation.id))
    return Bench(database, DiskFileStore(tmp_path / "projects", None), template, project)


async def test_a_provision_that_is_tried_again_and_at_once_is_told_once(bench: Bench) -> None:
    await asyncio.gather(*(bench.create_files() for _ in range(3)))
    await bench.create_files()
    await asyncio.gather(*(bench.finish() for _ in range(3)))

    assert await bench.told() == [("provisioning", None), ("provisioning", "creating_files"), ("ready", None)]
    assert await bench.files.read(bench.project.ref, "index.html") == b"hello"


async def test_nothing_that_comes_late_touches_a_project_that_is_ready(bench: Bench) -> None:
    """Neither an attempt of a worker that thaws nor a second run: the files are their owner's by now."""
    await bench.create_files()
    await bench.finish()
    (bench.files.root(bench.project.ref) / "index.html").write_text("mine")
    told = await bench.told()
    await bench.create_files()
    await bench.fail()
    await bench.finish()

    assert await bench.told() == told
    assert await bench.files.read(bench.project.ref, "index.html") == b"mine"


async def test_the_operation_of_a_second_run_ends_too(bench: Bench) -> None:
    """Reconcile has begun it at the moment in which the first one ended."""
    await bench.create_files()
    await bench.finish()
    async with bench.database.transaction() as session:
        project = bench.project
        second = await operations.create(
            session, user_id=project.user_id, project_id=project.project_id, kind=PROVISION
        )
    bench.project = bench.project.model_copy(update={"operation_id": str(second.id)})
    await bench.create_files()
    await bench.finish()

    async with bench.database.transaction() as session:
        ended = await operations.get(session, second.id, user_id=bench.project.user_id)
    assert ended is not None
    assert ended.state == "succeeded"


async def test_a_failed_project_is_not_finished_afterwards(bench: Bench) -> None:
    await bench.create_files()
    await bench.fail()
    await bench.fail()
    await bench.finish()

    assert [state for state, _ in await bench.told()] == ["provisioning", "provisioning", "failed"]
    assert not await bench.files.exists(bench.project.ref)
    async with bench.database.transaction() as session:
        assert await operations.running(session, bench.project.project_id, PROVISION) is None


async def test_a_project_that_is_being_deleted_gets_no_files(bench: Bench) -> None:
    async with bench.database.transaction() as session:
        await projects.set_state(session, bench.project.project_id, ProjectState.DELETING)
    with pytest.raises(ApplicationError) as caught:
        await bench.create_files()

    assert (caught.value.type, caught.value.non_retryable) == ("project_deleted", True)
    assert not await bench.files.exists(bench.project.ref)
