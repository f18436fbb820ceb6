"""`OffboardUser`: the order that loses nothing, begun again when a project has slipped in."""

import asyncio

from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.testing import WorkflowEnvironment

from tests.workflows import worlds
from workflows.contracts.names import offboard_user_id
from workflows.contracts.offboarding import OffboardingActivities, OffboardInput
from workflows.contracts.onboarding import OnboardInput
from workflows.offboard_user import OffboardUser


class LateProject(OffboardingActivities):
    """The projects take three tries, and one more has come when the row is to be removed."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    @activity.defn(name="delete_user_projects")
    async def delete_user_projects(self, user: OffboardInput) -> None:
        self.notes.append("projects")
        if self.notes.count("projects") <= 2:
            raise ApplicationError("still there", type="projects_remain")

    @activity.defn(name="align_model_key")
    async def align_model_key(self, user: OnboardInput) -> None:
        self.notes.append("key")

    @activity.defn(name="remove_user")
    async def remove_user(self, user: OffboardInput) -> bool:
        self.notes.append("row")
        return self.notes.count("row") == 2


async def test_projects_go_first_then_the_key_then_the_row(temporal: WorkflowEnvironment) -> None:
    world = LateProject()
    async with worlds.worker(temporal.client, "users", world), asyncio.timeout(30):
        await temporal.client.execute_workflow(
            OffboardUser.run, OffboardInput(user_id=7), id=offboard_user_id(7), task_queue="users"
        )
    assert world.notes == ["projects", "projects", "projects", "key", "row", "projects", "key", "row"]
