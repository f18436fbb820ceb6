"""Record the histories that `test_replay.py` replays: `python -m tests.workflows.record_histories`.

Run once per release of a workflow that changes it; the earlier files stay for as long as runs of them may live.
"""

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from temporalio.client import WorkflowHandle
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment

from tests.workflows import worlds
from tests.workflows.conftest import binary
from tests.workflows.test_agent_task import calls, start, until
from tests.workflows.test_dev_server import RESTART, START, STOP, Server
from tests.workflows.test_offboard_user import LateProject
from tests.workflows.test_onboard_user import ProxyThatComesBack
from tests.workflows.test_project import PROJECT
from workflows.contracts.agent_tasks import NextMove, PauseReason, StepOutcome
from workflows.contracts.dev_servers import DevServerState
from workflows.contracts.offboarding import OffboardInput
from workflows.contracts.onboarding import OnboardInput
from workflows.contracts.starts import PROJECT_ID, TASK_STATE, USER_ID
from workflows.delete_project import DeleteProject
from workflows.offboard_user import OffboardUser
from workflows.onboard_user import OnboardUser
from workflows.provision_project import ProvisionProject

ROOT = Path(__file__).parents[2]
HISTORIES = Path(__file__).parent / "histories"


async def _save(handle: WorkflowHandle[Any, Any], release: str, name: str) -> None:
    history = (await handle.fetch_history()).to_json().replace(f"{ROOT}/", "")
    await asyncio.to_thread((HISTORIES / f"{name}-{release}.json").write_text, history + "\n")


async def _dev_server(environment: WorkflowEnvironment, release: str) -> None:
    world = worlds.DevServerWorld()
    async with worlds.worker(environment.client, "recorded", world):
        server = Server(environment, world, "recorded")
        await server.command(1, START)
        await server.until_state(DevServerState.RUNNING)
        await server.command(2, START)
        await server.until(lambda: world.changes[-1].step.generation == 2)
        await server.command(3, RESTART)
        await server.until(lambda: world.changes[-1].step.generation == 3)
        await server.command(4, STOP)
        await server.ended()
        await _save(server.handle, release, "dev_server")


async def _dev_server_stopped_in_launch(environment: WorkflowEnvironment, release: str) -> None:
    world = worlds.SlowLaunch()
    async with worlds.worker(environment.client, "recorded-slow", world):
        server = Server(environment, world, "recorded-slow")
        await server.command(1, START)
        await server.until(lambda: "launch 1" in world.notes)
        await server.command(2, STOP)
        await server.ended()
        await _save(server.handle, release, "dev_server_stopped_in_launch")


async def _projects(environment: WorkflowEnvironment, release: str) -> None:
    client = environment.client
    for world, name in ((worlds.ProjectWorld(), "provision"), (worlds.RefusedSource(), "provision_failed")):
        async with worlds.worker(client, name, world):
            handle = await client.start_workflow(ProvisionProject.run, PROJECT, id=name, task_queue=name)
            await handle.result()
            await _save(handle, release, name)
    async with worlds.worker(client, "delete", worlds.StubbornFolder()):
        deletion = await client.start_workflow(DeleteProject.run, PROJECT, id="delete", task_queue="delete")
        await deletion.result()
        await _save(deletion, release, "delete")


async def _agent_tasks(environment: WorkflowEnvironment, release: str) -> None:
    paused = StepOutcome(move=NextMove.WAIT, reason=PauseReason.APPROVAL, until=datetime(2100, 1, 1, tzinfo=UTC))
    world = worlds.AgentWorld({1: calls("a", "b"), 2: calls("c")})
    world.moves[2], world.moves[3] = [paused], [StepOutcome(move=NextMove.COMPACT)]
    world.unseen_at_the_end, world.following = 1, "nobody"
    async with worlds.worker(environment.client, "task", world):
        handle = await start(environment, "task")
        await until(lambda: world.looks == 2)
        await handle.signal("look")
        await handle.result()
        first = environment.client.get_workflow_handle(handle.id, run_id=handle.first_execution_run_id)
        await _save(first, release, "agent_task")
        await _save(environment.client.get_workflow_handle(handle.id), release, "agent_task_second_run")
    endless = worlds.EndlessCall({1: calls("a")})
    async with worlds.worker(environment.client, "task-cancelled", endless):
        handle = await start(environment, "task-cancelled")
        await until(lambda: "call begun" in endless.notes)
        await handle.signal("cancel")
        await handle.result()
        await _save(handle, release, "agent_task_cancelled")


async def _users(environment: WorkflowEnvironment, release: str) -> None:
    client = environment.client
    async with worlds.worker(client, "onboard", ProxyThatComesBack()):
        onboarding = await client.start_workflow(
            OnboardUser.run, OnboardInput(user_id=7), id="onboard", task_queue="onboard", start_signal="look"
        )
        await onboarding.result()
        await _save(onboarding, release, "onboard")
    async with worlds.worker(client, "offboard", LateProject()):
        leaving = OffboardInput(user_id=7)
        offboarding = await client.start_workflow(OffboardUser.run, leaving, id="offboard", task_queue="offboard")
        await offboarding.result()
        await _save(offboarding, release, "offboard")


async def main(release: str) -> None:
    """Play each story once, on a real server, and keep what it wrote down."""
    HISTORIES.mkdir(exist_ok=True)
    async with await WorkflowEnvironment.start_local(
        data_converter=pydantic_data_converter,
        dev_server_existing_path=binary("temporal"),
        search_attributes=[USER_ID, PROJECT_ID, TASK_STATE],
    ) as environment:
        await _dev_server(environment, release)
        await _dev_server_stopped_in_launch(environment, release)
        await _projects(environment, release)
        await _agent_tasks(environment, release)
        await _users(environment, release)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
