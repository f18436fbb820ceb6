"""Tasks whose workflow must hear of something: whatever signal was lost, the rows still say it."""

from datetime import timedelta
from decimal import Decimal
from typing import Final

from sqlalchemy import ColumnElement, case, func, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from storage.agent_tasks import TaskRecord, record_of
from storage.event_listener import CANCELS_CHANNEL
from storage.tables import AgentTaskRow, Approval, ModelCall, TaskStep, User
from workflows.contracts.agent_tasks import FINAL_STATES, ApprovalState, CancelReason, PauseReason, TaskState

_PATIENCE: Final = timedelta(minutes=10)
"""A pause that a raised bound should have ended is looked at this often: the proxy may have a bound of its own."""


async def unended(session: AsyncSession, *, older_than_s: float, limit: int) -> list[TaskRecord]:
    """Tasks that haven't ended and whose rows haven't changed for long: each has a workflow, or had one."""
    quiet = AgentTaskRow.updated_at < func.now() - timedelta(seconds=older_than_s)
    return await _page(session, quiet, limit)


async def cancelling(session: AsyncSession, *, older_than_s: float, limit: int) -> list[TaskRecord]:
    """Tasks that were asked to end long ago and haven't."""
    asked = AgentTaskRow.cancel_requested_at < func.now() - timedelta(seconds=older_than_s)
    return await _page(session, asked, limit)


async def resumable(
    session: AsyncSession, *, older_than_s: float, default_monthly_usd: Decimal | None, limit: int
) -> list[TaskRecord]:
    """Paused tasks that nothing holds back any more: decided on, or their bound was raised, or a month began."""
    old = func.now() - timedelta(seconds=older_than_s)
    undecided = select(Approval.id).where(
        Approval.task_id == AgentTaskRow.id, Approval.state == ApprovalState.PENDING, Approval.expires_at > old
    )
    steps = select(func.coalesce(func.max(TaskStep.n), 0)).where(TaskStep.task_id == AgentTaskRow.id).scalar_subquery()
    spent = (
        select(func.coalesce(func.sum(ModelCall.cost_usd), 0))
        .where(ModelCall.user_id == AgentTaskRow.user_id, ModelCall.at >= func.date_trunc("month", func.now(), "UTC"))
        .scalar_subquery()
    )
    own = select(User.monthly_budget_usd).where(User.id == AgentTaskRow.user_id).scalar_subquery()
    monthly = func.coalesce(own, literal(default_monthly_usd, type_=ModelCall.cost_usd.type))
    patient = AgentTaskRow.updated_at < func.now() - _PATIENCE
    free = case(
        (AgentTaskRow.state_reason == PauseReason.APPROVAL, ~undecided.exists()),
        (AgentTaskRow.state_reason == PauseReason.MAX_STEPS, AgentTaskRow.max_steps > steps),
        (
            AgentTaskRow.state_reason == PauseReason.BUDGET,
            or_(AgentTaskRow.budget_usd.is_(None), AgentTaskRow.budget_usd > AgentTaskRow.cost_usd),
        ),
        else_=patient & or_(monthly.is_(None), monthly > spent),
    )
    paused = (AgentTaskRow.state == TaskState.AWAITING_APPROVAL) & (AgentTaskRow.updated_at < old)
    return await _page(session, paused & free, limit)


async def _page(session: AsyncSession, which: ColumnElement[bool], limit: int) -> list[TaskRecord]:
    query = select(AgentTaskRow).where(AgentTaskRow.state.not_in(FINAL_STATES), which)
    rows = await session.scalars(query.order_by(AgentTaskRow.updated_at).limit(limit))
    return [record_of(row) for row in rows]


async def cancel_all(session: AsyncSession, project_id: int) -> None:
    """The project is being deleted: ask all of its tasks to end. Its row must be locked."""
    asked = await session.scalars(
        update(AgentTaskRow)
        .where(
            AgentTaskRow.project_id == project_id,
            AgentTaskRow.state.not_in(FINAL_STATES),
            AgentTaskRow.cancel_requested_at.is_(None),
        )
        .values(cancel_requested_at=func.clock_timestamp(), cancel_reason=CancelReason.PROJECT_DELETED)
        .returning(AgentTaskRow.id)
    )
    for task_id in asked.all():
        await session.execute(select(func.pg_notify(CANCELS_CHANNEL, str(task_id))))


async def unended_of(session: AsyncSession, project_id: int) -> list[TaskRecord]:
    """The project's tasks that haven't ended."""
    return await _page(session, AgentTaskRow.project_id == project_id, limit=1000)
