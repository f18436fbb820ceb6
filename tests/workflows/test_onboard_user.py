"""`OnboardUser`: the proxy is told in the end, of the newest row, and no key is in the history."""

import asyncio

from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.testing import WorkflowEnvironment

from tests.workflows import worlds
from workflows.contracts.names import onboard_user_id
from workflows.contracts.onboarding import OnboardingActivities, OnboardInput
from workflows.onboard_user import OnboardUser

USER = OnboardInput(user_id=7)


class ProxyThatComesBack(OnboardingActivities):
    """The proxy is away for the first two attempts."""

    def __init__(self) -> None:
        self.attempts = 0

    @activity.defn(name="align_model_key")
    async def align_model_key(self, user: OnboardInput) -> None:
        self.attempts += 1
        if self.attempts <= 2:
            raise ApplicationError("away", type="model_unavailable")


class SlowProxy(OnboardingActivities):
    """Takes as long as the test wants. `looks`: how often it was asked."""

    def __init__(self) -> None:
        self.looks = 0
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()

    @activity.defn(name="align_model_key")
    async def align_model_key(self, user: OnboardInput) -> None:
        self.looks += 1
        self.begun.set()
        await self.go_on.wait()


async def test_it_tries_until_the_proxy_is_back(temporal: WorkflowEnvironment) -> None:
    world = ProxyThatComesBack()
    async with worlds.worker(temporal.client, "users", world), asyncio.timeout(30):
        await temporal.client.execute_workflow(OnboardUser.run, USER, id=onboard_user_id(7), task_queue="users")
    assert world.attempts == 3


async def test_it_looks_again_when_the_row_has_changed_meanwhile(temporal: WorkflowEnvironment) -> None:
    world = SlowProxy()
    async with worlds.worker(temporal.client, "users", world), asyncio.timeout(30):
        run = await temporal.client.start_workflow(
            OnboardUser.run, USER, id=onboard_user_id(7), task_queue="users", start_signal="look"
        )
        await world.begun.wait()
        await run.signal(OnboardUser.look)
        await run.signal(OnboardUser.look)
        world.go_on.set()
        await run.result()
    assert world.looks == 2
