"""Questions to a task's owner: asked with the step that raises them, answered over the API, denied by their time limit.

Whoever writes here holds the locks of project and task. What a client decides: storage/task_decisions.py.
"""

from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from uuid6 import uuid7

from storage import event_log
from storage.tables import AgentTaskRow, Approval
from workflows.contracts.agent_tasks import ApprovalKind, ApprovalState
from workflows.contracts.events import EventType, NewEvent

_SHOWN_ARGUMENTS: Final = 4000


@dataclass(frozen=True)
class ApprovalRecord:
    """A question as stored; see `storage.tables.Approval`."""

    id: UUID
    task_id: UUID
    step: int
    call_id: str | None
    kind: str
    state: str
    decision: str | None
    note: str | None
    requested_at: datetime
    expires_at: datetime
    resolved_at: datetime | None


def _record(row: Approval) -> ApprovalRecord:
    return ApprovalRecord(**{field.name: getattr(row, field.name) for field in fields(ApprovalRecord)})


@dataclass(frozen=True)
class Question:
    """What is asked: one call, or for a plan (`call_id` None) everything from here on, `arguments` being the plan."""

    kind: ApprovalKind
    step: int
    call_id: str | None
    name: str | None
    arguments: str


async def request(session: AsyncSession, task: AgentTaskRow, question: Question, *, limit_s: float) -> ApprovalRecord:
    """Ask, and tell it."""
    row = Approval(
        id=UUID(str(uuid7())),
        task_id=task.id,
        step=question.step,
        call_id=question.call_id,
        kind=question.kind,
        expires_at=func.now() + timedelta(seconds=limit_s),
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    data = {
        "approval_id": str(row.id),
        "kind": question.kind,
        "step": question.step,
        "call": question.call_id,
        "name": question.name,
        "arguments": question.arguments[:_SHOWN_ARGUMENTS],
        "expires_at": row.expires_at.isoformat().replace("+00:00", "Z"),
    }
    await _tell(session, task, EventType.APPROVAL_REQUESTED, data)
    return _record(row)


async def of_step(session: AsyncSession, task_id: UUID, n: int) -> list[ApprovalRecord]:
    """The step's questions in the order in which they were asked."""
    query = select(Approval).where(Approval.task_id == task_id, Approval.step == n).order_by(Approval.id)
    return [_record(row) for row in await session.scalars(query.execution_options(populate_existing=True))]


async def expire(session: AsyncSession, task: AgentTaskRow, n: int) -> None:
    """Deny the step's questions whose time is over."""
    await _expire(session, task, (Approval.step == n) & (Approval.expires_at <= func.now()))


async def withdraw(session: AsyncSession, task: AgentTaskRow) -> None:
    """The task ends: nobody needs to answer any more."""
    await _expire(session, task, Approval.task_id == task.id)


async def _expire(session: AsyncSession, task: AgentTaskRow, which: ColumnElement[bool]) -> None:
    query = select(Approval).where(Approval.task_id == task.id, Approval.state == ApprovalState.PENDING, which)
    for row in (await session.scalars(query.order_by(Approval.id))).all():
        row.state, row.resolved_at = ApprovalState.EXPIRED, func.clock_timestamp()
        await session.flush()
        data = {"approval_id": str(row.id), "call": row.call_id, "decision": None, "state": row.state, "note": None}
        await _tell(session, task, EventType.APPROVAL_RESOLVED, data)


async def _tell(session: AsyncSession, task: AgentTaskRow, kind: EventType, data: dict[str, Any]) -> None:
    event = NewEvent(project_id=task.project_id, type=kind, task_id=str(task.id), data=data)
    event_log.append(session, [event])
