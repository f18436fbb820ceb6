"""How workflows call activities: a typed method of a contract, a policy, and words for the operator."""

import asyncio
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
    """Run an activity under `policy`; `summary` shows in the Temporal UI. Raises `ActivityError`.

    A task that was cancelled meanwhile goes no further, also when the activity succeeded all the same: the SDK hands
    out the result then and forgets the cancellation, and whoever waits for the task's end would wait for ever.
    """
    config: workflow.ActivityConfig = {**policy, "summary": summary}
    result = await workflow.execute_activity_method(activity, argument, **config)
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
    return result
