"""How workflows call activities: a typed method of a contract, a policy, and words for the operator."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from temporalio import workflow

Argument = TypeVar("Argument")
Result = TypeVar("Result")


async def perform(
    activity: Callable[[Any, Argument], Awaitable[Result]],
    argument: Argument,
    policy: workflow.ActivityConfig,
    summary: str,
) -> Result:
    """Run an activity under `policy`; `summary` shows in the Temporal UI. Raises `ActivityError`."""
    config: workflow.ActivityConfig = {**policy, "summary": summary}
    return await workflow.execute_activity_method(activity, argument, **config)
