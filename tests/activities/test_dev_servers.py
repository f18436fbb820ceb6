"""Activities of a worker that was thought dead, and of signals that come very late: nothing newer is touched."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.dev_servers import DevServers, DevServerSettings
from activities.files.store import DiskFileStore
from activities.ports import ContainerState, ContainerStatus, DevServerSpec, Runtime, StageListener
from storage import dev_servers, projects
from storage.engine import Database
from storage.projects import ProjectRecord
from storage.secret_box import SecretBox
from tests.storage.records import command, log_of, new_dev_server
from workflows.contracts.dev_servers import DevServerAction, DevServerState, DevServerStep, StateChange
from workflows.contracts.names import ProjectRef
from workflows.contracts.projects import ProjectState

START, STOP, RESTART = DevServerAction.START, DevServerAction.STOP, DevServerAction.RESTART


class NotingRuntime:
    """One container; notes what is done to it."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.state: ContainerState | None = None

    async def inspect(self, ref: ProjectRef) -> ContainerStatus | None:
        return None if self.state is None else ContainerStatus(ref, "container", self.state, "")

    async def launch(self, spec: DevServerSpec, *, on_stage: StageListener) -> None:
        self.notes.append("launch")
        await on_stage("starting")
        self.state = ContainerState.RUNNING

    async def stop(self, ref: ProjectRef) -> None:
        self.notes.append("stop")
        self.state = ContainerState.EXITED


class Bench:
    """The activities over a real database and a project with files, as an attempt meets them."""

    def __init__(self, database: Database, files: DiskFileStore, project: ProjectRecord) -> None:
        self.database = database
        self.project = project
        self.runtime = NotingRuntime()
        runtime = cast("Runtime", self.runtime)
        self.activities = DevServers(database, files, runtime, SecretBox("s" * 32), DevServerSettings())

    def step(self, generation: int) -> DevServerStep:
        return DevServerStep(user_id=self.project.user_id, project_id=self.project.id, generation=generation)

    async def attempt(self, activity: Callable[[DevServerStep], Awaitable[Any]], generation: int) -> None:
        await ActivityEnvironment().run(activity, self.step(generation))

    async def refused(self, generation: int) -> str | None:
        """Why a launch is refused; it isn't tried again then."""
        with pytest.raises(ApplicationError) as caught:
            await self.attempt(self.activities.launch_dev_server, generation)
        assert caught.value.non_retryable
        return caught.value.type

    async def record(self, generation: int, state: DevServerState) -> None:
        async with self.database.transaction() as session:
            assert await dev_servers.record(session, StateChange(step=self.step(generation), state=state))

    async def state(self) -> str:
        async with self.database.transaction() as session:
            server = await dev_servers.get(session, self.project.id)
        assert server is not None
        return server.state


@pytest.fixture
async def bench(database: Database, tmp_path: Path) -> Bench:
    project = await new_dev_server(database)
    files = DiskFileStore(tmp_path / "projects", None)
    source = tmp_path / "source"
    source.mkdir()
    (source / "studio.toml").write_text('command = "serve"\n')
    await files.create(project.ref, source)
    return Bench(database, files, project)


async def test_a_launch_tells_its_stage_and_starts(bench: Bench) -> None:
    await command(bench.database, bench.project, START)
    await bench.attempt(bench.activities.launch_dev_server, 1)
    await bench.attempt(bench.activities.launch_dev_server, 1)

    assert await bench.state() == "starting"
    told = [
        (kind, data.get("stage", data.get("state"))) for _, kind, data in await log_of(bench.database, bench.project.id)
    ]
    assert told[2:] == [("dev_server.state", "starting"), ("dev_server.stage", "starting")]


async def test_a_launch_that_thaws_after_its_server_runs_changes_nothing(bench: Bench) -> None:
    await command(bench.database, bench.project, START)
    await bench.attempt(bench.activities.launch_dev_server, 1)
    await bench.record(1, DevServerState.RUNNING)
    log, notes = await log_of(bench.database, bench.project.id), list(bench.runtime.notes)
    await bench.attempt(bench.activities.launch_dev_server, 1)

    assert await log_of(bench.database, bench.project.id) == log
    assert bench.runtime.notes == notes
    assert await bench.state() == "running"


async def test_a_server_that_its_row_says_runs_and_that_does_not_is_started(bench: Bench) -> None:
    """Its workflow was lost, and with it the watch."""
    await command(bench.database, bench.project, START)
    await bench.record(1, DevServerState.RUNNING)
    await bench.attempt(bench.activities.launch_dev_server, 1)

    assert bench.runtime.notes == ["launch"]
    assert await bench.state() == "starting"


@pytest.mark.parametrize("ended", [DevServerState.FAILED, DevServerState.STOPPED])
async def test_a_launch_that_thaws_after_its_server_has_ended_starts_nothing(
    bench: Bench, ended: DevServerState
) -> None:
    await command(bench.database, bench.project, START)
    await bench.record(1, ended)

    assert await bench.refused(1) == "superseded"
    assert (bench.runtime.notes, await bench.state()) == ([], ended)


async def test_a_launch_whose_successor_was_served_starts_nothing(bench: Bench) -> None:
    """The signal of the first start came after the second one had been served, and had failed."""
    for _ in range(2):
        await command(bench.database, bench.project, START)
    await bench.record(2, DevServerState.FAILED)

    assert await bench.refused(1) == "superseded"
    assert (bench.runtime.notes, await bench.state()) == ([], "failed")


async def test_a_launch_gives_way_to_a_later_stop_and_not_to_a_later_start(bench: Bench) -> None:
    for action in (START, START):
        await command(bench.database, bench.project, action)
    await bench.attempt(bench.activities.launch_dev_server, 1)
    assert bench.runtime.notes == ["launch"]
    await command(bench.database, bench.project, STOP)
    assert await bench.refused(1) == "superseded"
    assert bench.runtime.notes == ["launch"]


async def test_a_stop_that_thaws_after_the_next_start_stops_nothing(bench: Bench) -> None:
    for generation, (action, state) in enumerate(
        [(START, DevServerState.RUNNING), (STOP, DevServerState.STOPPED), (START, DevServerState.RUNNING)], start=1
    ):
        await command(bench.database, bench.project, action)
        await bench.record(generation, state)
    await bench.attempt(bench.activities.stop_dev_server, 2)
    assert bench.runtime.notes == []

    await command(bench.database, bench.project, STOP)
    await bench.attempt(bench.activities.stop_dev_server, 4)
    assert bench.runtime.notes == ["stop"]


async def test_a_stop_whose_project_is_gone_stops_what_is_left(bench: Bench) -> None:
    async with bench.database.transaction() as session:
        await projects.delete(session, bench.project.id)
    await bench.attempt(bench.activities.stop_dev_server, 1)
    assert bench.runtime.notes == ["stop"]


async def test_nothing_is_launched_for_a_project_that_is_being_deleted(bench: Bench) -> None:
    await command(bench.database, bench.project, START)
    async with bench.database.transaction() as session:
        await projects.set_state(session, bench.project.id, ProjectState.DELETING)

    assert await bench.refused(1) == "superseded"
    assert bench.runtime.notes == []
