"""Tasks as stored, and the changes of state that tell of themselves. What steps add: storage/task_steps.py."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from storage import event_log
from storage.engine import Database
from storage.event_listener import OPERATIONS_CHANNEL
from storage.statements import Statement
from storage.tables import AgentTaskRow
from workflows.contracts.agent_tasks import ACTIVE_STATES, FINAL_STATES, TaskState
from workflows.contracts.events import EventType, NewEvent
from workflows.contracts.names import ProjectRef


@dataclass(frozen=True)
class TaskRecord:
    """A task as stored; see `storage.tables.AgentTaskRow`."""

    id: UUID
    user_id: int
    project_id: int
    chat_id: UUID
    mode: str
    prompt: str
    prompt_seq: int
    model: str
    tools: list[str] | None
    approval_mode: str
    max_steps: int
    budget_usd: Decimal | None
    state: str
    state_reason: str | None
    state_detail: str | None
    plan_allowed: bool
    allowed_tools: list[str]
    todo: list[dict[str, Any]]
    cancel_requested_at: datetime | None
    cancel_reason: str | None
    retry_of: UUID | None
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def ref(self) -> ProjectRef:
        """The pair from which the project's names follow."""
        return ProjectRef(self.user_id, self.project_id)

    @property
    def ended(self) -> bool:
        """Whether nothing follows."""
        return self.state in FINAL_STATES


def record_of(row: AgentTaskRow) -> TaskRecord:
    """The row as other rooms see it."""
    return TaskRecord(**{field: getattr(row, field) for field in TaskRecord.__dataclass_fields__})


async def get(session: AsyncSession, task_id: UUID) -> TaskRecord | None:
    """The task, whoever's it is, or None."""
    row = await session.get(AgentTaskRow, task_id, populate_existing=True)
    return None if row is None else record_of(row)


_CANCELLATION: Final = Statement(
    select(AgentTaskRow.state, AgentTaskRow.cancel_requested_at).where(AgentTaskRow.id == bindparam("task_id"))
)


async def is_to_end(database: Database, task_id: UUID) -> bool:
    """Whether nothing more is to be done for the task: it was asked to end, has ended, or is gone."""
    rows = await database.fetch(_CANCELLATION, task_id=task_id)
    return not rows or rows[0]["state"] in FINAL_STATES or rows[0]["cancel_requested_at"] is not None


_LOCK: Final = select(AgentTaskRow).where(AgentTaskRow.id == bindparam("task_id")).with_for_update(key_share=True)


async def lock(session: AsyncSession, task_id: UUID) -> AgentTaskRow | None:
    """The task's row, locked until the transaction ends, or None. Its project's row must be locked before it."""
    return await session.scalar(_LOCK, {"task_id": task_id}, execution_options={"populate_existing": True})


async def is_chat_busy(session: AsyncSession, row: AgentTaskRow) -> bool:
    """Whether another task of the chat is under way, or was queued earlier than this one."""
    others = select(AgentTaskRow.id).where(
        AgentTaskRow.chat_id == row.chat_id,
        AgentTaskRow.id != row.id,
        AgentTaskRow.state.in_(ACTIVE_STATES) | ((AgentTaskRow.state == TaskState.QUEUED) & (AgentTaskRow.id < row.id)),
    )
    return (await session.scalars(others.limit(1))).first() is not None


async def next_queued(session: AsyncSession, chat_id: UUID) -> UUID | None:
    """The chat's queued task that has waited longest."""
    query = select(AgentTaskRow.id).where(AgentTaskRow.chat_id == chat_id, AgentTaskRow.state == TaskState.QUEUED)
    return (await session.scalars(query.order_by(AgentTaskRow.id).limit(1))).first()


async def set_state(
    session: AsyncSession, row: AgentTaskRow, state: TaskState, *, reason: str | None = None, detail: str | None = None
) -> None:
    """Change the locked row's state and tell it; the same again is told once. An ended task never changes."""
    if row.state in FINAL_STATES or (row.state, row.state_reason) == (state, reason):
        return
    row.state, row.state_reason, row.state_detail = state, reason, detail
    if state == TaskState.RUNNING and row.started_at is None:
        row.started_at = func.clock_timestamp()
    if state in FINAL_STATES:
        row.ended_at = func.clock_timestamp()
    await session.flush()
    event_log.append(session, [state_event(row)])
    await session.execute(select(func.pg_notify(OPERATIONS_CHANNEL, str(row.id))))  # a task is an operation, too


def state_event(row: AgentTaskRow) -> NewEvent:
    """What watchers are told of a task's state."""
    return NewEvent(
        project_id=row.project_id,
        type=EventType.TASK_STATE,
        task_id=str(row.id),
        data={
            "state": row.state,
            "reason": row.state_reason,
            "detail": row.state_detail,
            "chat_id": str(row.chat_id),
            "mode": row.mode,
        },
    )
