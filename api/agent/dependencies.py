"""The owner check of every route below a task: somebody else's task and none at all answer alike."""

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Path

from api.auth.dependencies import CurrentUser, Principal, StreamUser
from api.services import Services, ServicesDep
from storage import agent_tasks
from storage.agent_tasks import TaskRecord
from workflows.contracts.errors import NotFoundError

TaskId = Annotated[UUID, Path(description="The task's id.")]


async def owned_task(task_id: TaskId, user: CurrentUser, services: ServicesDep) -> TaskRecord:
    """The caller's task. Raises `NotFoundError` for a missing one and for somebody else's alike."""
    return await _find(services, task_id, user)


async def streamed_task(task_id: TaskId, user: StreamUser, services: ServicesDep) -> TaskRecord:
    """As `owned_task`, where a `?ticket=` in the query string is taken too."""
    return await _find(services, task_id, user)


async def _find(services: Services, task_id: UUID, user: Principal) -> TaskRecord:
    async with services.database.reading() as session:
        task = await agent_tasks.get(session, task_id)
    if task is None or task.user_id != user.user_id:
        raise NotFoundError
    return task


OwnedTask = Annotated[TaskRecord, Depends(owned_task)]
StreamedTask = Annotated[TaskRecord, Depends(streamed_task)]
