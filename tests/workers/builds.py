"""Two builds of one worker whose workflows differ: what one has begun, the other can't replay."""

import asyncio
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from workers.deployment import deployment_config
    from workers.worker import workflow_runner
    from workflows.contracts.names import TASK_QUEUE
    from workflows.handover import hand_over, should_hand_over

DEPLOYMENT = "studio"
STEPS = 8


@activity.defn
async def step(build: str) -> str:
    await asyncio.sleep(0.3)
    return build


async def _step(build: str) -> str:
    return await workflow.execute_activity(step, build, start_to_close_timeout=timedelta(seconds=10))


@workflow.defn(name="ProvisionProject")
class OldShort:
    """Doesn't hand over, as most workflows."""

    @workflow.run
    async def run(self) -> list[str]:
        return [await _step("old") for _ in range(STEPS)]


@workflow.defn(name="ProvisionProject")
class NewShort:
    @workflow.run
    async def run(self) -> list[str]:
        await workflow.sleep(0.01)  # a history of the old build has no such timer
        return [await _step("new") for _ in range(STEPS)]


@workflow.defn(name="AgentTask")
class OldLong:
    """Works for some steps, then sleeps until its user says something."""

    def __init__(self) -> None:
        self._said = False

    @workflow.signal
    def look(self) -> None:
        """Wakes it."""

    @workflow.signal
    def say(self) -> None:
        self._said = True

    @workflow.run
    async def run(self, done: list[str]) -> list[str]:
        while len(done) < STEPS:
            done = [*done, await _step("old")]
            if should_hand_over():
                hand_over(done)
        await workflow.wait_condition(lambda: self._said or should_hand_over())
        if not self._said:
            hand_over(done)
        return [*done, "old"]


@workflow.defn(name="AgentTask")
class NewLong:
    def __init__(self) -> None:
        self._said = False

    @workflow.signal
    def look(self) -> None:
        """Wakes it."""

    @workflow.signal
    def say(self) -> None:
        self._said = True

    @workflow.run
    async def run(self, done: list[str]) -> list[str]:
        await workflow.sleep(0.01)
        while len(done) < STEPS:
            done = [*done, await _step("new")]
        await workflow.wait_condition(lambda: self._said)
        return [*done, "new"]


WORKFLOWS = {"old": (OldShort, OldLong), "new": (NewShort, NewLong)}


def build(client: Client, name: str) -> Worker:
    """A worker of the build."""
    return Worker(
        client,
        task_queue=TASK_QUEUE,
        workflows=WORKFLOWS[name],
        activities=[step],
        workflow_runner=workflow_runner(),
        deployment_config=deployment_config(DEPLOYMENT, name),
        graceful_shutdown_timeout=timedelta(seconds=2),
    )
