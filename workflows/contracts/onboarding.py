"""A user's key at the LLM proxy: what `OnboardUser` is told and asks for. No key is in a payload."""

from typing import Protocol

from pydantic import BaseModel, ConfigDict
from temporalio import activity


class OnboardInput(BaseModel):
    """Whose key."""

    model_config = ConfigDict(frozen=True)

    user_id: int


class OnboardingActivities(Protocol):
    """The effects of an onboarding. Safe to run twice: they follow from rows."""

    @activity.defn(name="align_model_key")
    async def align_model_key(self, user: OnboardInput) -> None:
        """Make the proxy have what the user's row says: a key with their budget, or none when they are shut out."""
