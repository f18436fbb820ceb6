"""The deletion of a user: what `OffboardUser` is told and asks for."""

from typing import Protocol

from pydantic import BaseModel, ConfigDict
from temporalio import activity


class OffboardInput(BaseModel):
    """Who. Their row says that they are leaving before this starts."""

    model_config = ConfigDict(frozen=True)

    user_id: int


class OffboardingActivities(Protocol):
    """The effects of a user's deletion. Each is safe to run twice."""

    @activity.defn(name="delete_user_projects")
    async def delete_user_projects(self, user: OffboardInput) -> None:
        """Have each of the user's projects deleted; fails, to be tried again, as long as one is there."""

    @activity.defn(name="remove_user")
    async def remove_user(self, user: OffboardInput) -> bool:
        """Remove the user's row and all that hangs on it. False: a project has come after all, nothing is removed."""
