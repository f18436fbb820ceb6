"""Tasks as operations: a task has no row of its own among them, its own row tells the same."""

from typing import Any, Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from storage import agent_tasks
from storage.agent_tasks import TaskRecord
from storage.operations import OperationRecord
from workflows.contracts.agent_tasks import TaskState
from workflows.contracts.operations import OperationKind, OperationState

_RETRYABLE: Final = {"model_unavailable", "model_throttled"}


async def get(session: AsyncSession, task_id: UUID, *, user_id: int) -> OperationRecord | None:
    """The user's task as an operation, or None."""
    task = await agent_tasks.get(session, task_id)
    return operation_of(task) if task is not None and task.user_id == user_id else None


def operation_of(task: TaskRecord) -> OperationRecord:
    """`running` until the task has ended; `stage` is its own state. A cancelled one has failed by that."""
    if not task.ended:
        state = OperationState.RUNNING
    elif task.state == TaskState.COMPLETED:
        state = OperationState.SUCCEEDED
    else:
        state = OperationState.FAILED
    return OperationRecord(
        id=task.id,
        user_id=task.user_id,
        project_id=task.project_id,
        kind=OperationKind.AGENT_TASK,
        state=state,
        stage=task.state,
        generation=None,
        error=_error(task) if state == OperationState.FAILED else None,
        started_at=task.created_at,
        ended_at=task.ended_at,
    )


def _error(task: TaskRecord) -> dict[str, Any]:
    code = task.state_reason or task.state
    detail = task.state_detail or (
        "The task was cancelled." if task.state == TaskState.CANCELLED else "The task failed."
    )
    return {"code": code, "detail": detail, "retryable": code in _RETRYABLE}
