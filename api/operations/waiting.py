"""Waiting for an operation: by notification, with a slow poll beneath it in case one is lost."""

import asyncio
from collections.abc import Callable
from uuid import UUID

from api.services import Services
from storage import operations, task_operations
from storage.operations import CHANNEL, OperationRecord
from workflows.contracts.agent_tasks import TaskState
from workflows.contracts.errors import NotFoundError
from workflows.contracts.operations import OperationState

_POLL_S = 2.0
"""A notification that was lost with the listener's connection costs at most this long."""


async def find(services: Services, operation_id: UUID, user_id: int) -> OperationRecord:
    """The user's operation, or task by its id. Raises `NotFoundError` for a missing one and somebody else's alike."""
    async with services.database.transaction() as session:
        operation = await operations.get(session, operation_id, user_id=user_id)
        if operation is None:
            operation = await task_operations.get(session, operation_id, user_id=user_id)
    if operation is None:
        raise NotFoundError
    return operation


async def until_ended(services: Services, operation: OperationRecord, seconds: float) -> OperationRecord:
    """The operation once it has ended, or as it is after `seconds`."""
    return await _until(services, operation, seconds, lambda now: now.state != OperationState.RUNNING)


async def until_settled(services: Services, task: OperationRecord, seconds: float) -> OperationRecord:
    """A task once it has ended or waits for its owner, or as it is after `seconds`."""
    return await _until(
        services,
        task,
        seconds,
        lambda now: now.state != OperationState.RUNNING or now.stage == TaskState.AWAITING_APPROVAL,
    )


async def until_changed(services: Services, operation: OperationRecord, seconds: float) -> OperationRecord:
    """The operation once it differs from `operation`, or as it is after `seconds`."""
    return await _until(services, operation, seconds, lambda now: now != operation)


async def _until(
    services: Services, operation: OperationRecord, seconds: float, satisfied: Callable[[OperationRecord], bool]
) -> OperationRecord:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    async with services.events.listener.subscribe(CHANNEL, str(operation.id)) as changes:
        while True:
            now = await find(services, operation.id, operation.user_id)
            remaining = deadline - loop.time()
            if satisfied(now) or remaining <= 0:
                return now
            await changes.wait(timeout_s=min(_POLL_S, remaining))
