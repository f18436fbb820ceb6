"""Reconciliation beside work that goes on: what ends between two looks isn't begun again."""

from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import text
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.testing import ActivityEnvironment

from activities.ports import ContainerState, ContainerStatus, Runtime
from activities.reconcile import Reconciliation
from storage import projects, users
from storage.engine import Database
from storage.projects import NewProject
from tests.storage.records import new_dev_server
from workflows.contracts.names import ProjectRef
from workflows.contracts.projects import ProjectState
from workflows.contracts.reconcile import ReconcileInput, ReconcileReport


@dataclass
class Closed:
    """A workflow that has just ended."""

    status = WorkflowExecutionStatus.COMPLETED


class WorkflowsThatEndMeanwhile:
    """Each was running when the rows were read; it marks its project ready, and has ended when it is asked for."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.started: list[str] = []

    def get_workflow_handle(self, workflow_id: str) -> "WorkflowsThatEndMeanwhile":
        return self

    async def describe(self) -> Closed:
        async with self.database.transaction() as session:
            for project_id in await session.scalars(text("SELECT id FROM projects")):
                await projects.set_state(session, project_id, ProjectState.READY)
        return Closed()

    async def start_workflow(self, name: str, *_: Any, **__: Any) -> None:
        self.started.append(name)


async def test_a_provision_that_ends_between_two_looks_is_not_begun_again(database: Database) -> None:
    async with database.transaction() as session:
        user = await users.create(session, email="ann@example.com", name=None, password_hash="")
        await projects.create(session, NewProject(user.id, "p", template="static"), limit=1)
    async with database.transaction() as session:
        await session.execute(text("UPDATE projects SET updated_at = now() - interval '1 h'"))
    client = WorkflowsThatEndMeanwhile(database)
    reconciliation = Reconciliation(
        database, cast("Runtime", None), cast("Client", client), start_timeout_s=60, idle_grace_s=60
    )
    report: ReconcileReport = await ActivityEnvironment().run(reconciliation.restart_lost_work, ReconcileInput())

    assert client.started == []
    assert report == ReconcileReport()
    async with database.reading() as session:
        assert await session.scalar(text("SELECT count(*) FROM operations")) == 0


class RuntimeWithEnds:
    """Servers that have ended; of the first one its memory is still held."""

    def __init__(self, *refs: ProjectRef) -> None:
        self.found = [
            ContainerStatus(ref, "c", ContainerState.EXITED, "", exit_code=1, lingering=ref == refs[0]) for ref in refs
        ]
        self.stopped: list[ProjectRef] = []

    async def discover(self) -> list[ContainerStatus]:
        return self.found

    async def stop(self, ref: ProjectRef) -> None:
        self.stopped.append(ref)


async def test_a_server_that_crashed_unseen_is_made_to_give_back_what_it_holds(database: Database) -> None:
    records = [await new_dev_server(database) for _ in range(2)]
    refs = [ProjectRef(record.user_id, record.id) for record in records]
    runtime = RuntimeWithEnds(*refs)
    reconciliation = Reconciliation(
        database,
        cast("Runtime", runtime),
        cast("Client", WorkflowsThatEndMeanwhile(database)),
        start_timeout_s=60,
        idle_grace_s=60,
    )
    sweep = reconciliation.sweep_containers
    early: ReconcileReport = await ActivityEnvironment().run(sweep, ReconcileInput())
    assert (early.strays, runtime.stopped) == ([], [])
    report: ReconcileReport = await ActivityEnvironment().run(sweep, ReconcileInput(grace_s=0))
    assert (report.strays, runtime.stopped) == ([refs[0].project_id], [refs[0]])
