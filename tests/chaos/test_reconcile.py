"""What no workflow knows of is found and mended by schedule: lost signals, orphans, strays, ended workflows."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from docker.errors import NotFound
from docker.models.containers import Container
from temporalio.client import Client

from storage import dev_servers, operations, projects
from storage.engine import Database
from storage.projects import NewProject
from tests.chaos.checks import check_nothing_left, until_gone
from tests.chaos.observers import Engine
from tests.chaos.world import Person, Project, World, states, until
from workflows.contracts.dev_servers import DevServerAction
from workflows.contracts.names import LABEL_INSTANCE, LABEL_PROJECT, LABEL_USER, dev_server_id
from workflows.contracts.operations import OperationKind
from workflows.contracts.projects import ProjectState

pytestmark = [pytest.mark.chaos, pytest.mark.docker]

GRACE_S = 4.0


@pytest.fixture
def engine(world: World) -> Engine:
    assert isinstance(world.observer, Engine)
    return world.observer


@pytest.fixture
async def database(world: World) -> AsyncIterator[Database]:
    """The stack's own."""
    opened = Database(world.environment["DATABASE_URL"], pool_size=2)
    yield opened
    await opened.close()


@asynccontextmanager
async def standing(engine: Engine, instance: str, user_id: int, project_id: int) -> AsyncIterator[Container]:
    """A container with an installation's labels that nobody has asked for."""
    labels = {LABEL_INSTANCE: instance, LABEL_USER: str(user_id), LABEL_PROJECT: str(project_id)}
    image = "studio-devserver:latest"

    def run() -> Container:
        return engine.client.containers.run(image, ["sleep", "300"], labels=labels, detach=True, network_mode="none")

    try:
        container = await asyncio.to_thread(run)
    except NotFound:  # swept between its creation and its start: only what runs is given time
        container = await asyncio.to_thread(run)
    try:
        yield container
    finally:
        for left in engine.client.containers.list(all=True, filters={"id": str(container.id)}):
            left.remove(force=True)


async def test_a_container_without_a_project_goes_and_another_installations_stays(
    world: World, ann: Person, engine: Engine
) -> None:
    running = await ann.start()
    servers = world.observer.servers(ann.id, running.id)
    async with (
        standing(engine, world.instance, ann.id, 10**9),
        standing(engine, f"{world.instance}-other", ann.id, 10**9) as theirs,
    ):
        began = asyncio.get_running_loop().time()

        async def gone() -> bool:
            return engine.containers(ann.id, 10**9) == []

        await until(gone, "the orphan's removal", timeout_s=25)
        assert asyncio.get_running_loop().time() - began > GRACE_S - 1.5, "it was given its grace"
        theirs.reload()
        assert theirs.status == "running"
    assert world.observer.servers(ann.id, running.id) == servers
    await running.check_sound()


async def test_a_container_that_runs_though_its_row_says_stopped_is_stopped(
    world: World, ann: Person, engine: Engine
) -> None:
    project = await ann.start()
    await project.run("stop")
    container = engine.container(ann.id, project.id)
    container.start()

    async def stopped() -> bool:
        container.reload()
        return container.status == "exited"

    await until(stopped, "the stray's stop", timeout_s=25)
    await project.run("start")
    assert engine.container(ann.id, project.id).id == container.id
    log = await project.check_sound()
    assert states(log) == ["starting", "running", "stopping", "stopped", "starting", "running"]


async def test_a_server_whose_workflow_was_terminated_is_adopted_as_it_is(world: World, ann: Person) -> None:
    project = await ann.start()
    servers, log = world.observer.servers(ann.id, project.id), await project.log()
    client = await Client.connect(world.environment["TEMPORAL_ADDRESS"])
    handle = client.get_workflow_handle(dev_server_id(project.id))
    first = (await handle.describe()).run_id
    await handle.terminate("by an operator")

    async def adopted() -> bool:
        description = await handle.describe()
        history = await handle.fetch_history()
        watching = any(
            event.activity_task_scheduled_event_attributes.activity_type.name == "watch_dev_server"
            for event in history.events
        )
        return description.run_id != first and watching

    await until(adopted, "another workflow", timeout_s=25)
    assert world.observer.servers(ann.id, project.id) == servers
    assert await project.log() == log
    world.observer.crash(ann.id, project.id)
    await project.until_state("failed", timeout_s=10)
    assert states(await project.check_sound()) == ["starting", "running", "failed"]


async def test_commands_whose_signal_was_lost_are_sent_again(world: World, ann: Person, database: Database) -> None:
    """The API died between its commit and its signal."""
    starting, stopping = await ann.make(), await ann.start()
    for project, action, kind in (
        (starting, DevServerAction.START, OperationKind.START_DEV_SERVER),
        (stopping, DevServerAction.STOP, OperationKind.STOP_DEV_SERVER),
    ):
        async with database.transaction() as session:
            await projects.lock(session, project.id)
            accepted = await dev_servers.accept(session, project.id, action)
            await operations.create(
                session, user_id=ann.id, project_id=project.id, kind=kind, generation=accepted.generation
            )
    await ann.until_ended(timeout_s=25)
    assert states(await starting.check_sound()) == ["starting", "running"]
    assert states(await stopping.check_sound()) == ["starting", "running", "stopping", "stopped"]
    assert {row["state"] for row in await ann.operations()} == {"succeeded"}


async def test_projects_whose_workflow_was_never_started_are_made_and_deleted(
    world: World, ann: Person, database: Database
) -> None:
    deleting = await ann.make()
    async with database.transaction() as session:
        await projects.set_state(session, deleting.id, ProjectState.DELETING)
        made = await projects.create(session, NewProject(ann.id, "p", template="static"), limit=100)
        for project_id, kind in (
            (deleting.id, OperationKind.DELETE_PROJECT),
            (made.id, OperationKind.PROVISION_PROJECT),
        ):
            await operations.create(session, user_id=ann.id, project_id=project_id, kind=kind)
    await ann.until_ended(timeout_s=25)
    assert {row["state"] for row in await ann.operations()} == {"succeeded"}
    project = Project(ann, made.id)
    await project.run("start")
    await project.check_sound()
    await until_gone(deleting)
    await check_nothing_left(deleting)
