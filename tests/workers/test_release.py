"""Updates of the worker while workflows run: each history stays with the code that wrote it, and nothing is lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.common import SearchAttributeKey
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from tests.workers.builds import DEPLOYMENT, STEPS, NewLong, OldLong, OldShort, build
from tests.workers.stacks import ROOT
from tests.workflows.worlds import AgentWorld, DevServerWorld
from workers.deployment import WorkerDeployment, deployment_config
from workers.leaving import await_handover, await_release
from workers.release import release
from workers.worker import WORKFLOWS, activities_of, workflow_runner
from workflows.agent_task import AgentTask
from workflows.contracts.agent_tasks import AgentTaskInput, NextMove, PauseReason, StepOutcome
from workflows.contracts.dev_servers import DevServerAction, DevServerCommand, DevServerInput, DevServerState
from workflows.contracts.names import TASK_QUEUE
from workflows.dev_server import DevServer

WAIT = StepOutcome(move=NextMove.WAIT, reason=PauseReason.APPROVAL, until=datetime(2100, 1, 1, tzinfo=UTC))
ATTRIBUTES = [SearchAttributeKey.for_keyword(name) for name in ("UserId", "ProjectId", "TaskState")]


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    program = ROOT / ".venv" / "bin" / "temporal"
    async with await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(program),
        data_converter=pydantic_data_converter,
        dev_server_log_level="error",
        search_attributes=ATTRIBUTES,
    ) as environment:
        yield environment.client


@pytest.fixture
def deployment(client: Client) -> WorkerDeployment:
    return WorkerDeployment(client, DEPLOYMENT)


@asynccontextmanager
async def serving(deployment: WorkerDeployment, worker: Worker, name: str) -> AsyncIterator[None]:
    """A worker as its process runs it: ready when its build is released, gone when nothing of it is left."""
    async with worker:
        await await_release(deployment, name, asyncio.Event())
        yield
        await await_handover(deployment, name, limit_s=60)


async def builds_of(handle: WorkflowHandle[Any, Any]) -> list[set[str]]:
    """The builds that completed the workflow's tasks, for each of its runs from the first."""
    found = []
    run_id: str | None = handle.first_execution_run_id
    while run_id:
        events = [
            event async for event in handle._client.get_workflow_handle(handle.id, run_id=run_id).fetch_history_events()
        ]
        completed = [
            event.workflow_task_completed_event_attributes
            for event in events
            if event.HasField("workflow_task_completed_event_attributes")
        ]
        assert not [event for event in events if event.HasField("workflow_task_failed_event_attributes")]
        found.append({each.deployment_version.build_id for each in completed})
        run_id = events[-1].workflow_execution_continued_as_new_event_attributes.new_execution_run_id
    return found


@pytest.mark.slow
async def test_update_under_twenty_workflows_fails_none_and_replays_none_with_other_code(
    client: Client, deployment: WorkerDeployment
) -> None:
    async with asyncio.timeout(120):
        old = serving(deployment, build(client, "old"), "old")
        releasing = asyncio.create_task(release(deployment, "old", leave_limit_s=60))
        await old.__aenter__()
        await releasing
        short = [await client.start_workflow(OldShort.run, id=f"short-{n}", task_queue=TASK_QUEUE) for n in range(10)]
        long = [await client.start_workflow(OldLong.run, [], id=f"long-{n}", task_queue=TASK_QUEUE) for n in range(10)]
        await asyncio.sleep(1.0)

        releasing = asyncio.create_task(release(deployment, "new", leave_limit_s=60))
        async with serving(deployment, build(client, "new"), "new"):
            fresh = await client.start_workflow(NewLong.run, [], id="fresh", task_queue=TASK_QUEUE)
            await old.__aexit__(None, None, None)
            await releasing
            for name in [*(handle.id for handle in long), fresh.id]:
                await client.get_workflow_handle(name).signal(NewLong.say)
            results = [await handle.result() for handle in short] + [await handle.result() for handle in long]
            assert await fresh.result() == ["new"] * (STEPS + 1)

        assert results[:10] == [["old"] * STEPS] * 10
        for result in results[10:]:
            assert len(result) == STEPS + 1
            assert result == sorted(result, reverse=True)
            assert (result[0], result[-1]) == ("old", "new")
        assert [await builds_of(handle) for handle in short] == [[{"old"}]] * 10
        assert [await builds_of(handle) for handle in long] == [[{"old"}, {"new"}]] * 10


def real_worker(client: Client, name: str, servers: DevServerWorld, agent: AgentWorld) -> Worker:
    return Worker(
        client,
        task_queue=TASK_QUEUE,
        workflows=WORKFLOWS,
        activities=[*activities_of(servers), *activities_of(agent)],
        workflow_runner=workflow_runner(),
        deployment_config=deployment_config(DEPLOYMENT, name),
        graceful_shutdown_timeout=timedelta(milliseconds=200),
        max_heartbeat_throttle_interval=timedelta(milliseconds=200),
        default_heartbeat_throttle_interval=timedelta(milliseconds=200),
    )


@pytest.mark.slow
async def test_a_running_dev_server_and_a_task_that_waits_for_its_user_move_on(
    client: Client, deployment: WorkerDeployment
) -> None:
    servers, agent = DevServerWorld(), AgentWorld()
    agent.moves[1] = [WAIT, WAIT]
    async with asyncio.timeout(90):
        old = serving(deployment, real_worker(client, "1.0", servers, agent), "1.0")
        releasing = asyncio.create_task(release(deployment, "1.0", leave_limit_s=60))
        await old.__aenter__()
        await releasing
        server = await client.start_workflow(
            DevServer.run,
            DevServerInput(user_id=1, project_id=2, start_timeout_s=60, idle_grace_s=60),
            id="dev-server-2",
            task_queue=TASK_QUEUE,
            start_signal="command",
            start_signal_args=[DevServerCommand(generation=1, action=DevServerAction.START)],
        )
        task = await client.start_workflow(
            AgentTask.run,
            AgentTaskInput(user_id=1, project_id=2, task_id="t"),
            id="agent-task-t",
            task_queue=TASK_QUEUE,
        )
        while servers.states[-1:] != [DevServerState.RUNNING] or agent.looks < 1:  # noqa: ASYNC110 -- plain lists
            await asyncio.sleep(0.05)

        releasing = asyncio.create_task(release(deployment, "1.1", leave_limit_s=60))
        async with serving(deployment, real_worker(client, "1.1", servers, agent), "1.1"):
            await old.__aexit__(None, None, None)
            await releasing
            assert servers.notes.count("launch 1") == 1
            assert servers.running
            await client.get_workflow_handle(task.id).signal(AgentTask.look)
            await task.result()
            stop = DevServerCommand(generation=2, action=DevServerAction.STOP)
            await client.get_workflow_handle(server.id).signal(DevServer.command, stop)
            await server.result()
        assert servers.states[-1] == DevServerState.STOPPED
        assert agent.notes.count("step 1") == 1
        assert await builds_of(server) == [{"1.0"}, {"1.1"}]
        assert await builds_of(task) == [{"1.0"}, {"1.1"}]


@pytest.mark.slow
async def test_what_lost_workers_left_is_ended_for_reconcile_to_begin_anew(
    client: Client, deployment: WorkerDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.deployment._POLL_S", 1.0)
    async with asyncio.timeout(90):
        async with build(client, "old"):
            await release(deployment, "old", leave_limit_s=60)
            left = await client.start_workflow(OldLong.run, [], id="left", task_queue=TASK_QUEUE)
            await asyncio.sleep(0.5)
        async with build(client, "new"):
            await release(deployment, "new", leave_limit_s=60)
            anew = await client.start_workflow(NewLong.run, [], id="left", task_queue=TASK_QUEUE)
            await anew.signal(NewLong.say)
            assert (await anew.result())[0] == "new"
    described = await client.get_workflow_handle("left", run_id=left.first_execution_run_id).describe()
    assert described.status == WorkflowExecutionStatus.TERMINATED


async def test_a_build_is_ready_when_released_and_the_way_back_is_a_release(
    client: Client, deployment: WorkerDeployment
) -> None:
    async with asyncio.timeout(60), build(client, "old"), build(client, "new"):
        assert await deployment.current() is None
        ready = asyncio.create_task(await_release(deployment, "new", asyncio.Event()))
        await release(deployment, "old", leave_limit_s=60)
        await asyncio.sleep(2.5)
        assert not ready.done()
        await release(deployment, "new", leave_limit_s=60)
        await ready
        await release(deployment, "old", leave_limit_s=60)
        assert await deployment.current() == "old"


async def test_a_worker_of_the_current_build_leaves_at_once_and_a_told_one_doesnt_wait_for_its_release(
    client: Client, deployment: WorkerDeployment
) -> None:
    async with asyncio.timeout(60), build(client, "old"):
        await release(deployment, "old", leave_limit_s=60)
        await client.start_workflow(OldLong.run, [], id="stays", task_queue=TASK_QUEUE)
        await await_handover(deployment, "old", limit_s=3600)
        stop = asyncio.Event()
        stop.set()
        await await_release(deployment, "new", stop)
        await client.get_workflow_handle("stays").terminate()
