"""The `DevServer` entity: commands in the database's order, every timer, every way to end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from temporalio.client import WorkflowExecutionStatus, WorkflowHandle
from temporalio.testing import WorkflowEnvironment

from tests.workflows import worlds
from workflows.contracts.dev_servers import (
    DevServerAction,
    DevServerCommand,
    DevServerInput,
    DevServerState,
    IdleVerdict,
    ServerExit,
)
from workflows.dev_server import DevServer

Handle = WorkflowHandle[DevServer, None]
START, STOP, RESTART = DevServerAction.START, DevServerAction.STOP, DevServerAction.RESTART


class Server:
    """A running entity in its world."""

    def __init__(self, environment: WorkflowEnvironment, world: worlds.DevServerWorld, queue: str) -> None:
        self.environment = environment
        self.world = world
        self.queue = queue
        self.handle: Handle

    async def command(self, generation: int, action: DevServerAction, *, start_timeout_s: float = 600) -> None:
        """As the API does it: the row first, then signal-with-start."""
        self.world.newest = max(self.world.newest, generation)
        self.handle = await self.environment.client.start_workflow(
            DevServer.run,
            DevServerInput(user_id=1, project_id=2, start_timeout_s=start_timeout_s, idle_grace_s=60),
            id=f"dev-server-{self.queue}",
            task_queue=self.queue,
            start_signal="command",
            start_signal_args=[DevServerCommand(generation=generation, action=action)],
        )

    async def until(self, condition: Callable[[], bool], seconds: float = 10) -> None:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 -- what is waited for happens in a world of plain lists
                await asyncio.sleep(0.01)

    async def until_state(self, state: DevServerState) -> None:
        await self.until(lambda: bool(self.world.states) and self.world.states[-1] == state)

    async def ended(self) -> None:
        async with asyncio.timeout(20):
            await self.handle.result()


@asynccontextmanager
async def entity(
    environment: WorkflowEnvironment, world: worlds.DevServerWorld, *, cached: int = 100
) -> AsyncIterator[Server]:
    queue = f"queue-{id(world)}"
    async with worlds.worker(environment.client, queue, world, cached=cached):
        yield Server(environment, world, queue)


@pytest.mark.parametrize("cached", [100, 0], ids=["cached", "replayed at every step"])
async def test_a_start_runs_and_a_stop_ends_it(temporal: WorkflowEnvironment, cached: int) -> None:
    async with entity(temporal, worlds.DevServerWorld(), cached=cached) as server:
        await server.command(1, START)
        await server.until_state(DevServerState.RUNNING)
        await server.command(2, STOP)
        await server.ended()
        assert server.world.notes == ["launch 1", "probe", "running", "stop", "stopped"]
        assert server.world.changes[-1].step.generation == 2


async def test_a_second_start_while_it_runs_launches_nothing_and_ends_its_operation(
    temporal: WorkflowEnvironment,
) -> None:
    async with entity(temporal, worlds.DevServerWorld()) as server:
        await server.command(1, START)
        await server.until_state(DevServerState.RUNNING)
        await server.command(2, START)
        await server.until(lambda: server.world.changes[-1].step.generation == 2)
        assert server.world.states == ["running", "running"]
        assert server.world.notes.count("launch 1") == 1


async def test_a_stop_during_a_launch_waits_for_its_end_and_wins(temporal: WorkflowEnvironment) -> None:
    async with entity(temporal, worlds.SlowLaunch()) as server:
        await server.command(1, START)
        await server.until(lambda: "launch 1" in server.world.notes)
        await server.command(2, STOP)
        await server.ended()
        assert server.world.notes == ["launch 1", "launch ended", "stop", "stopped"]


async def test_a_stop_during_a_launch_that_succeeds_all_the_same_does_not_wait_for_an_answer(
    temporal: WorkflowEnvironment,
) -> None:
    world = worlds.DeafLaunch()
    async with entity(temporal, world) as server:
        await server.command(1, START)
        await server.until(lambda: "launch 1" in world.notes)
        await server.command(2, STOP)
        await asyncio.sleep(0.2)
        world.done.set()
        await server.ended()
        assert world.notes == ["launch 1", "stop", "stopped"]


async def test_a_command_at_the_moment_in_which_the_leases_are_told_is_served(temporal: WorkflowEnvironment) -> None:
    """Both are in one workflow task, since no worker is there when they come."""
    world = worlds.HeldAnswer()
    async with entity(temporal, world) as server:
        await server.command(1, START)
        await server.until(lambda: world.held is not None)
    await server.command(2, STOP)
    verdict = IdleVerdict(now=world.now(), expires_at=world.now() + timedelta(hours=1), pinned=False)
    assert world.held is not None
    await temporal.client.get_async_activity_handle(task_token=world.held).complete(verdict)
    async with worlds.worker(temporal.client, server.queue, world):
        await server.ended()
    assert world.states == ["running", "stopped"]


async def test_signals_in_the_wrong_order_end_in_the_highest_generation(temporal: WorkflowEnvironment) -> None:
    async with entity(temporal, worlds.DevServerWorld()) as server:
        await server.command(3, STOP)
        await server.command(2, START)
        await server.command(1, STOP)
        await server.ended()
        assert server.world.states[-1] == "stopped"
        assert not server.world.running


async def test_a_start_after_a_stop_in_the_same_moment_runs_again(temporal: WorkflowEnvironment) -> None:
    async with entity(temporal, worlds.DevServerWorld()) as server:
        await server.command(1, START)
        await server.until_state(DevServerState.RUNNING)
        await server.command(2, STOP)
        await server.command(3, START)
        await server.until(lambda: server.world.changes[-1].step.generation == 3)
        await server.until_state(DevServerState.RUNNING)
        assert server.world.running


async def test_a_restart_stops_and_launches_anew(temporal: WorkflowEnvironment) -> None:
    async with entity(temporal, worlds.DevServerWorld()) as server:
        await server.command(1, START)
        await server.until_state(DevServerState.RUNNING)
        await server.command(2, RESTART)
        await server.until(lambda: server.world.changes[-1].step.generation == 2)
        assert server.world.notes == ["launch 1", "probe", "running", "stop", "launch 2", "probe", "running"]


async def test_a_server_that_never_answers_fails_at_the_start_timeout(temporal: WorkflowEnvironment) -> None:
    """In real time: no time is skipped while an activity probes."""
    async with entity(temporal, worlds.SilentServer()) as server:
        await server.command(1, START, start_timeout_s=1.5)
        await server.ended()
        last = server.world.changes[-1]
        assert (last.state, last.code, last.with_log) == ("failed", "timed_out", True)
        assert last.reason == "It didn't answer over HTTP within 1.5 s."
        assert not server.world.running


async def test_a_launch_that_is_out_of_time_tells_what_it_has_heard(temporal: WorkflowEnvironment) -> None:
    async with entity(temporal, worlds.SilentNode()) as server:
        await server.command(1, START, start_timeout_s=2)
        await server.ended()
        last = server.world.changes[-1]
        assert (last.state, last.code) == ("failed", "timed_out")
        assert last.reason == "It wasn't up within 2 s. An earlier try: The node doesn't answer."


async def test_a_failure_is_told_though_what_it_left_cant_be_stopped(temporal: WorkflowEnvironment) -> None:
    async with entity(temporal, worlds.LeftOver()) as server:
        await server.command(1, START)
        await server.ended()
        assert server.world.notes == ["launch 1", "stop", "failed"]
        assert server.world.changes[-1].code == "image_missing"


async def test_a_crash_before_the_first_answer_tells_the_exit_code(temporal: WorkflowEnvironment) -> None:
    async with entity(temporal, worlds.CrashingServer()) as server:
        await server.command(1, START)
        await server.ended()
        last = server.world.changes[-1]
        assert (last.state, last.code, last.exit_code) == ("failed", "crashed", 3)


async def test_a_crash_while_running_fails_it(temporal: WorkflowEnvironment) -> None:
    async with entity(temporal, worlds.DevServerWorld()) as server:
        await server.command(1, START)
        await server.until_state(DevServerState.RUNNING)
        server.world._end(ServerExit(exit_code=137, out_of_memory=True))
        await server.ended()
        last = server.world.changes[-1]
        assert (last.state, last.code, last.exit_code) == ("failed", "out_of_memory", 137)


async def test_a_missing_image_fails_at_once_and_is_not_tried_again(temporal: WorkflowEnvironment) -> None:
    async with entity(temporal, worlds.MissingImage()) as server:
        await server.command(1, START)
        await server.ended()
        assert server.world.notes.count("launch 1") == 1
        assert (server.world.changes[-1].code, server.world.changes[-1].reason) == (
            "image_missing",
            "The image is missing.",
        )


async def test_a_start_that_is_no_longer_wanted_touches_and_says_nothing(temporal: WorkflowEnvironment) -> None:
    async with entity(temporal, worlds.LaterCommand()) as server:
        await server.command(1, START)
        await server.ended()
        assert server.world.notes == ["refused"]


async def test_an_engine_that_comes_back_is_waited_for(temporal: WorkflowEnvironment) -> None:
    async with entity(temporal, worlds.FlakyEngine()) as server:
        await server.command(1, START)
        await server.until_state(DevServerState.RUNNING)


async def test_a_start_during_the_provision_waits_for_its_signal(temporal: WorkflowEnvironment) -> None:
    world = worlds.UnfinishedProject()
    async with entity(temporal, world) as server:
        await server.command(1, START)
        await server.until(lambda: "too early" in world.notes)
        world.provisioned = True
        await server.handle.signal(DevServer.project_settled)
        await server.until_state(DevServerState.RUNNING)
        assert world.notes.count("too early") == 1


async def test_a_lost_signal_of_the_provision_only_delays_the_start(skipping: WorkflowEnvironment) -> None:
    world = worlds.UnfinishedProject()
    async with entity(skipping, world) as server:
        await server.command(1, START)
        await server.until(lambda: "too early" in world.notes)
        world.provisioned = True
        await skipping.sleep(timedelta(seconds=31))
        await server.until_state(DevServerState.RUNNING)


async def test_an_idle_server_is_warned_then_stopped(skipping: WorkflowEnvironment) -> None:
    world = worlds.UnwatchedServer()
    async with entity(skipping, world) as server:
        began = await skipping.get_current_time()
        world.leases_until = began + timedelta(minutes=30)
        await _keep_clock(skipping, world)
        with skipping.auto_time_skipping_disabled():
            await server.command(1, START)
            await server.until_state(DevServerState.RUNNING)
        await _advance(skipping, world, timedelta(minutes=29))
        assert world.states == ["running"]
        await _advance(skipping, world, timedelta(minutes=1, seconds=5))
        await server.until(lambda: len(world.changes) == 2)
        assert world.changes[1].reason == "Nobody uses it: it sleeps in 60 s."
        await _advance(skipping, world, timedelta(seconds=61))
        await server.ended()
        assert [(change.state, change.reason) for change in world.changes[2:]] == [
            ("stopping", "idle"),
            ("stopped", "idle"),
        ]


async def test_a_lease_taken_during_the_grace_keeps_it_awake(skipping: WorkflowEnvironment) -> None:
    world = worlds.UnwatchedServer()
    async with entity(skipping, world) as server:
        began = await skipping.get_current_time()
        world.leases_until = began + timedelta(minutes=30)
        await _keep_clock(skipping, world)
        with skipping.auto_time_skipping_disabled():
            await server.command(1, START)
            await server.until_state(DevServerState.RUNNING)
        await _advance(skipping, world, timedelta(minutes=30, seconds=5))
        await server.until(lambda: len(world.changes) == 2)
        world.leases_until = began + timedelta(hours=2)
        await _advance(skipping, world, timedelta(seconds=61))
        await server.until(lambda: len(world.changes) == 3)
        assert (world.changes[2].state, world.changes[2].reason) == ("running", None)
        await _advance(skipping, world, timedelta(minutes=30))
        assert world.running


async def test_a_command_accepted_at_the_moment_of_falling_asleep_wins(skipping: WorkflowEnvironment) -> None:
    world = worlds.UnwatchedServer()
    async with entity(skipping, world) as server:
        began = await skipping.get_current_time()
        world.leases_until = began + timedelta(minutes=30)
        await _keep_clock(skipping, world)
        with skipping.auto_time_skipping_disabled():
            await server.command(1, START)
            await server.until_state(DevServerState.RUNNING)
        world.newest = 2  # accepted by the API, its signal still on the way
        await _advance(skipping, world, timedelta(minutes=32))
        assert "stop" not in world.notes
        assert world.running


async def test_a_retirement_removes_the_container_whatever_it_is_doing(temporal: WorkflowEnvironment) -> None:
    async with entity(temporal, worlds.SlowLaunch()) as server:
        await server.command(1, START)
        await server.until(lambda: "launch 1" in server.world.notes)
        await server.handle.signal(DevServer.retire)
        await server.ended()
        assert server.world.notes == ["launch 1", "launch ended", "retire"]


async def test_continue_as_new_carries_a_running_server_on(temporal: WorkflowEnvironment) -> None:
    """A run that begins as `running` watches at once: no second launch."""
    world = worlds.DevServerWorld()
    async with entity(temporal, world) as server:
        handle = await temporal.client.start_workflow(
            DevServer.run,
            DevServerInput(user_id=1, project_id=2, command=DevServerCommand(generation=4, action=START), running=True),
            id="carried",
            task_queue=server.queue,
        )
        world.newest = 5
        await asyncio.sleep(0.2)
        assert world.notes == []
        await handle.signal(DevServer.command, DevServerCommand(generation=5, action=STOP))
        await handle.result()
        assert world.notes == ["stop", "stopped"]
        assert (await handle.describe()).status == WorkflowExecutionStatus.COMPLETED


async def _keep_clock(environment: WorkflowEnvironment, world: worlds.DevServerWorld) -> None:
    now = await environment.get_current_time()
    world.now = lambda: now


async def _advance(environment: WorkflowEnvironment, world: worlds.DevServerWorld, by: timedelta) -> None:
    """Skip time, in steps, so that the world's clock follows the server's."""
    end = await environment.get_current_time() + by
    while (now := await environment.get_current_time()) < end:
        await environment.sleep(min(timedelta(seconds=5), end - now))
        await _keep_clock(environment, world)
