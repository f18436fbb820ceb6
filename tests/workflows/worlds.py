"""Small worlds for workflows to act in: each effect is noted, and each class misbehaves in the way of its name."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from activities.working import working
from workers.worker import WORKFLOWS, activities_of, workflow_runner
from workflows.contracts.agent_tasks import (
    AgentTaskActivities,
    NextMove,
    PlannedCall,
    StepOutcome,
    TaskEnd,
    TaskEnding,
    TaskState,
    TaskStepInput,
    ToolCallInput,
)
from workflows.contracts.dev_servers import (
    PROVISIONING,
    SUPERSEDED,
    DevServerActivities,
    DevServerStep,
    IdleVerdict,
    ServerExit,
    StateChange,
)
from workflows.contracts.projects import ProjectActivities, ProjectInput, ProvisionFailure


def worker(client: Client, queue: str, world: object, *, cached: int = 100) -> Worker:
    """Today's workflows, in the sandbox that production runs them in, over a world's activities."""
    return Worker(
        client,
        task_queue=queue,
        workflows=WORKFLOWS,
        activities=activities_of(world),
        workflow_runner=workflow_runner(),
        max_cached_workflows=cached,
        max_heartbeat_throttle_interval=timedelta(milliseconds=200),
        default_heartbeat_throttle_interval=timedelta(milliseconds=200),
    )


class DevServerWorld(DevServerActivities):
    """One container that starts at once and runs until it is told or made to end. `notes`: what happened, in order.

    `newest`: the row's generation; a record of an older one is refused, as the database does.
    `leases_until`: when the last lease ends, by the clock that skips.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.changes: list[StateChange] = []
        self.newest = 0
        self.running = False
        self.exit: asyncio.Future[ServerExit] = asyncio.get_running_loop().create_future()
        self.leases_until: datetime | None = None
        self.now: Callable[[], datetime] = lambda: datetime.now(UTC)

    @property
    def states(self) -> list[str]:
        return [change.state for change in self.changes]

    @activity.defn(name="launch_dev_server")
    async def launch_dev_server(self, step: DevServerStep) -> None:
        self.notes.append(f"launch {step.generation}")
        assert not self.running, "a second container"
        self.running = True
        self.exit = asyncio.get_running_loop().create_future()

    @activity.defn(name="probe_dev_server")
    async def probe_dev_server(self, step: DevServerStep) -> ServerExit | None:
        self.notes.append("probe")
        return None

    @activity.defn(name="watch_dev_server")
    async def watch_dev_server(self, step: DevServerStep) -> ServerExit:
        async with working():
            return await asyncio.shield(self.exit)

    @activity.defn(name="stop_dev_server")
    async def stop_dev_server(self, step: DevServerStep) -> None:
        self.notes.append("stop")
        self._end(ServerExit(exit_code=143))

    @activity.defn(name="retire_dev_server")
    async def retire_dev_server(self, step: DevServerStep) -> None:
        self.notes.append("retire")
        self._end(ServerExit(exit_code=None))

    def _end(self, ended: ServerExit) -> None:
        self.running = False
        if not self.exit.done():
            self.exit.set_result(ended)

    @activity.defn(name="record_dev_server")
    async def record_dev_server(self, change: StateChange) -> bool:
        if change.step.generation < self.newest:
            return False
        self.changes.append(change)
        self.notes.append(change.state)
        return True

    @activity.defn(name="read_idleness")
    async def read_idleness(self, step: DevServerStep) -> IdleVerdict:
        now = self.now()
        return IdleVerdict(now=now, expires_at=self.leases_until or now + timedelta(days=365), pinned=False)


class UnwatchedServer(DevServerWorld):
    """Its watch is between two attempts all the time: the server that skips time doesn't while an activity runs."""

    @activity.defn(name="watch_dev_server")
    async def watch_dev_server(self, step: DevServerStep) -> ServerExit:
        raise ApplicationError("later", next_retry_delay=timedelta(days=30))


class SilentServer(DevServerWorld):
    """The process lives, and never answers over HTTP."""

    @activity.defn(name="probe_dev_server")
    async def probe_dev_server(self, step: DevServerStep) -> ServerExit | None:
        self.notes.append("probe")
        async with working():
            await asyncio.get_running_loop().create_future()
        return None


class CrashingServer(DevServerWorld):
    """The process ends with code 3 before it answers."""

    @activity.defn(name="probe_dev_server")
    async def probe_dev_server(self, step: DevServerStep) -> ServerExit | None:
        self._end(ServerExit(exit_code=3))
        return ServerExit(exit_code=3)


class SlowLaunch(DevServerWorld):
    """A launch takes until it is cancelled."""

    @activity.defn(name="launch_dev_server")
    async def launch_dev_server(self, step: DevServerStep) -> None:
        self.notes.append(f"launch {step.generation}")
        try:
            async with working():
                await asyncio.get_running_loop().create_future()
        finally:
            self.notes.append("launch ended")


class DeafLaunch(DevServerWorld):
    """A launch that no cancellation reaches: it succeeds once `done` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.done = asyncio.Event()

    @activity.defn(name="launch_dev_server")
    async def launch_dev_server(self, step: DevServerStep) -> None:
        await super().launch_dev_server(step)
        await self.done.wait()


class HeldAnswer(UnwatchedServer):
    """The first question for leases is answered by the test, with the token that it finds in `held`."""

    held: bytes | None = None

    @activity.defn(name="read_idleness")
    async def read_idleness(self, step: DevServerStep) -> IdleVerdict:
        if self.held is None:
            self.held = activity.info().task_token
            activity.raise_complete_async()
        return await super().read_idleness(step)


class MissingImage(DevServerWorld):
    """The image isn't there: a cause that doesn't pass by itself."""

    @activity.defn(name="launch_dev_server")
    async def launch_dev_server(self, step: DevServerStep) -> None:
        self.notes.append(f"launch {step.generation}")
        raise ApplicationError("The image is missing.", type="image_missing", non_retryable=True)


class LeftOver(MissingImage):
    """What the launch has left can't be stopped: the engine has gone meanwhile, for longer than a start is given."""

    @activity.defn(name="stop_dev_server")
    async def stop_dev_server(self, step: DevServerStep) -> None:
        self.notes.append("stop")
        raise ApplicationError("The engine is away.", type="runtime_unavailable", next_retry_delay=timedelta(hours=1))


class SilentNode(DevServerWorld):
    """The first launch says that its node doesn't answer; the next one waits for it."""

    @activity.defn(name="launch_dev_server")
    async def launch_dev_server(self, step: DevServerStep) -> None:
        if activity.info().attempt == 1:
            raise ApplicationError("The node doesn't answer.", type="runtime_unavailable")
        async with working():
            await asyncio.get_running_loop().create_future()


class FlakyEngine(DevServerWorld):
    """The engine is away for the first three launches."""

    @activity.defn(name="launch_dev_server")
    async def launch_dev_server(self, step: DevServerStep) -> None:
        if activity.info().attempt <= 3:
            raise ApplicationError("The engine is away.", type="runtime_unavailable")
        await super().launch_dev_server(step)


class LaterCommand(DevServerWorld):
    """The database knows of a later command, whose signal is elsewhere."""

    @activity.defn(name="launch_dev_server")
    async def launch_dev_server(self, step: DevServerStep) -> None:
        self.notes.append("refused")
        raise ApplicationError("A later stop took its place.", type=SUPERSEDED, non_retryable=True)


class UnfinishedProject(DevServerWorld):
    """The project has no files until `provisioned` is set."""

    provisioned = False

    @activity.defn(name="launch_dev_server")
    async def launch_dev_server(self, step: DevServerStep) -> None:
        if not self.provisioned:
            self.notes.append("too early")
            raise ApplicationError("Not yet.", type=PROVISIONING, non_retryable=True)
        await super().launch_dev_server(step)


class ProjectWorld(ProjectActivities):
    """Everything succeeds at once. `notes`: what happened, in order."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    @activity.defn(name="create_project_files")
    async def create_project_files(self, project: ProjectInput) -> None:
        self.notes.append("create files")

    @activity.defn(name="finish_provision")
    async def finish_provision(self, project: ProjectInput) -> None:
        self.notes.append("ready")

    @activity.defn(name="fail_provision")
    async def fail_provision(self, failure: ProvisionFailure) -> None:
        self.notes.append(f"failed: {failure.code}: {failure.detail}")

    @activity.defn(name="await_workflows_closed")
    async def await_workflows_closed(self, project: ProjectInput) -> None:
        self.notes.append("others closed")

    @activity.defn(name="remove_project_container")
    async def remove_project_container(self, project: ProjectInput) -> None:
        self.notes.append("container removed")

    @activity.defn(name="remove_project_files")
    async def remove_project_files(self, project: ProjectInput) -> None:
        self.notes.append("files removed")

    @activity.defn(name="remove_project_rows")
    async def remove_project_rows(self, project: ProjectInput) -> None:
        self.notes.append("rows removed")


class SlowSource(ProjectWorld):
    """The files take until they are called off."""

    @activity.defn(name="create_project_files")
    async def create_project_files(self, project: ProjectInput) -> None:
        self.notes.append("create files")
        try:
            async with working():
                await asyncio.get_running_loop().create_future()
        finally:
            self.notes.append("called off")


class RefusedSource(ProjectWorld):
    """The source can't be had."""

    @activity.defn(name="create_project_files")
    async def create_project_files(self, project: ProjectInput) -> None:
        raise ApplicationError("There is no such repository.", type="git_failed", non_retryable=True)


class StubbornFolder(ProjectWorld):
    """The files can't be removed at the first three tries."""

    @activity.defn(name="remove_project_files")
    async def remove_project_files(self, project: ProjectInput) -> None:
        if activity.info().attempt <= 3:
            self.notes.append("files in use")
            raise OSError("busy")
        await super().remove_project_files(project)


class AgentWorld(AgentTaskActivities):
    """A model that says what `script` says of each step, and tools that succeed at once. `notes`: what happened.

    A step without a script ends the task. `moves`: outcomes that come before the step's own, one for each look.
    """

    def __init__(self, script: dict[int, list[PlannedCall]] | None = None) -> None:
        self.script = script or {}
        self.moves: dict[int, list[StepOutcome]] = {}
        self.notes: list[str] = []
        self.endings: list[TaskEnding] = []
        self.looks = 0
        self.unseen_at_the_end = 0
        self.following: str | None = None

    @activity.defn(name="take_step")
    async def take_step(self, step: TaskStepInput) -> StepOutcome:
        self.looks += 1
        if self.moves.get(step.step):
            return self.moves[step.step].pop(0)
        self.notes.append(f"step {step.step}")
        calls = self.script.get(step.step)
        return StepOutcome(move=NextMove.FINISH if calls is None else NextMove.CALLS, calls=calls or [])

    @activity.defn(name="compact_transcript")
    async def compact_transcript(self, step: TaskStepInput) -> StepOutcome:
        self.notes.append(f"compact {step.step}")
        return StepOutcome(move=NextMove.COMPACT)

    @activity.defn(name="run_tool_call")
    async def run_tool_call(self, call: ToolCallInput) -> None:
        self.notes.append(f"call {call.call_id}")

    @activity.defn(name="fail_tool_call")
    async def fail_tool_call(self, call: ToolCallInput) -> None:
        self.notes.append(f"failed {call.call_id}")

    @activity.defn(name="stop_tool_calls")
    async def stop_tool_calls(self, step: TaskStepInput) -> None:
        self.notes.append("commands killed")

    @activity.defn(name="end_task")
    async def end_task(self, ending: TaskEnding) -> TaskEnd:
        if ending.state == TaskState.COMPLETED and self.unseen_at_the_end:
            self.unseen_at_the_end -= 1
            self.notes.append("goes on")
            return TaskEnd(ended=False)
        self.endings.append(ending)
        self.notes.append(ending.state)
        return TaskEnd(ended=True, next_task_id=self.following)


class SideBySide(AgentWorld):
    """Each call ends only when all calls of its wave have begun."""

    def __init__(self, script: dict[int, list[PlannedCall]], together: int) -> None:
        super().__init__(script)
        self.gate = asyncio.Barrier(together)

    @activity.defn(name="run_tool_call")
    async def run_tool_call(self, call: ToolCallInput) -> None:
        async with asyncio.timeout(20):
            await self.gate.wait()
        await super().run_tool_call(call)


class EndlessCall(AgentWorld):
    """A tool runs until it is called off."""

    @activity.defn(name="run_tool_call")
    async def run_tool_call(self, call: ToolCallInput) -> None:
        self.notes.append("call begun")
        async with working():
            await asyncio.get_running_loop().create_future()


class BrokenTool(AgentWorld):
    """A tool can't be run at all."""

    @activity.defn(name="run_tool_call")
    async def run_tool_call(self, call: ToolCallInput) -> None:
        raise ApplicationError("no", non_retryable=True)


class RefusedKey(AgentWorld):
    """The model's server doesn't know the user's key."""

    @activity.defn(name="take_step")
    async def take_step(self, step: TaskStepInput) -> StepOutcome:
        raise ApplicationError("The key was refused.", type="model_key_refused", non_retryable=True)


class WordWhileReading(AgentWorld):
    """While the rows are read for the first time, and say that a person is waited for, that person decides."""

    def __init__(self, client: Client, wait: StepOutcome) -> None:
        super().__init__()
        self._client = client
        self._wait = wait

    @activity.defn(name="take_step")
    async def take_step(self, step: TaskStepInput) -> StepOutcome:
        self.looks += 1
        if self.looks > 1:
            return StepOutcome(move=NextMove.FINISH)
        await self._client.get_workflow_handle(activity.info().workflow_id or "").signal("look")
        return self._wait
