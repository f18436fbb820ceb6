"""What models cost: each call is reserved before it is made, and settled from the usage that came back.

Two budgets bound it alike: the user's for the calendar month (UTC), and the task's for its life. A call is admitted
when it fits beside what is spent and reserved, or when nothing else is reserved: so one call may overshoot, never two,
however many run at once. That holds as far as estimates are upper bounds: a model whose price nobody knows is counted
by what its server says afterwards.

Locks, after those of project and chat: the task's row, then the user's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Date, Select, bindparam, cast, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from storage import agent_tasks
from storage.tables import AgentTaskRow, ModelCall, User
from workflows.contracts.agent_tasks import FINAL_STATES, PauseReason, TaskState
from workflows.contracts.errors import NotFoundError

FORGOTTEN_AFTER: Final = timedelta(hours=1)
"""No call takes that long: whoever made one that is still open then, died."""
_FORGOTTEN_AT_ONCE: Final = 500


@dataclass(frozen=True)
class Reservation:
    """A call that is about to be made. `id` comes from whoever makes it, the same at each try.

    `estimate_usd`: what it costs at most, 0 where the price is unknown; `input_usd`: its prompt's share of that, which
    is owed also when nobody hears how the call ended.
    """

    id: UUID
    user_id: int
    model: str
    estimate_usd: Decimal
    project_id: int | None = None
    task_id: UUID | None = None
    input_usd: Decimal = Decimal(0)


class Admission(StrEnum):
    """`wait`: others have reserved what is left, and settle soon. The last two: that budget is spent."""

    ADMITTED = "admitted"
    WAIT = "wait"
    TASK_BUDGET = "task_budget"
    USER_BUDGET = "user_budget"


@dataclass(frozen=True)
class DayUsage:
    """What a user's calls of one day (UTC), project and model came to. `project_id` None: over `/v1`."""

    day: date
    project_id: int | None
    model: str
    calls: int
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal


@dataclass(frozen=True)
class Month:
    """What a user's calls of this month (UTC) have cost. `budget` None: unbounded."""

    spent: Decimal
    budget: Decimal | None


@dataclass(frozen=True)
class _Account:
    """A budget with what is spent of it, and what others have reserved in how many calls."""

    budget: Decimal
    spent: Decimal
    reserved: Decimal
    open_calls: int

    @property
    def exhausted(self) -> bool:
        return self.spent >= self.budget

    def takes(self, estimate: Decimal) -> bool:
        return self.open_calls == 0 or self.spent + self.reserved + estimate <= self.budget


# Made once each: building a statement and its cache key costs more than running it.
_IS_RESERVED: Final = select(ModelCall.id).where(ModelCall.id == bindparam("call_id"))
_MONTHLY_BUDGET: Final = (
    select(User.monthly_budget_usd).where(User.id == bindparam("user_id")).with_for_update(key_share=True)
)


async def reserve(session: AsyncSession, wanted: Reservation, *, default_monthly_usd: Decimal | None) -> Admission:
    """Admit the call and write it down, or say why not. The same id again is admitted, and written once.

    `default_monthly_usd`: the budget of users who have none of their own; None: unbounded. Takes turns with the user's
    other calls. Raises `NotFoundError` when the user or the task is gone.
    """
    monthly = await _lock_user(session, wanted.user_id)
    if await session.scalar(_IS_RESERVED, {"call_id": wanted.id}):
        return Admission.ADMITTED
    task = None if wanted.task_id is None else await _task_account(session, wanted.task_id)
    budget = default_monthly_usd if monthly is None else monthly
    user = None if budget is None else await _user_account(session, wanted.user_id, budget)
    if task is not None and task.exhausted:
        return Admission.TASK_BUDGET
    if user is not None and user.exhausted:
        return Admission.USER_BUDGET
    if not all(account.takes(wanted.estimate_usd) for account in (task, user) if account is not None):
        return Admission.WAIT
    session.add(
        ModelCall(
            id=wanted.id,
            user_id=wanted.user_id,
            project_id=wanted.project_id,
            task_id=wanted.task_id,
            model=wanted.model,
            reserved_usd=wanted.estimate_usd,
            input_usd=wanted.input_usd,
        )
    )
    await session.flush()
    return Admission.ADMITTED


async def settle(
    session: AsyncSession,
    call_id: UUID,
    *,
    input_tokens: int,
    output_tokens: int,
    cost_usd: Decimal,
    estimated: bool = False,
    task: AgentTaskRow | None = None,
) -> bool:
    """Write down what the call used, and add it to its task. Once: a second time changes nothing and is False.

    `estimated`: it is our reckoning, not the server's word. `task`: the call's, when its row is locked already. A call
    that was released or is unknown is False, too.
    """
    if task is None:
        task_id = await session.scalar(select(ModelCall.task_id).where(ModelCall.id == call_id))
        # The task's row before the call's: whoever ends a step holds it already when they settle.
        task = None if task_id is None else await agent_tasks.lock(session, task_id)
    call = await session.get(ModelCall, call_id, with_for_update=True, populate_existing=True)
    if call is None or call.settled_at is not None:
        return False
    call.input_tokens, call.output_tokens = max(input_tokens, 0), max(output_tokens, 0)
    call.cost_usd, call.estimated = max(cost_usd, Decimal(0)), estimated
    call.settled_at = func.clock_timestamp()
    if task is not None:
        task.input_tokens += call.input_tokens
        task.output_tokens += call.output_tokens
        task.cost_usd += call.cost_usd
    await session.flush()
    return True


async def release(session: AsyncSession, call_id: UUID) -> None:
    """Forget a call that cost nothing: it was refused before it began. One that is settled stays."""
    await session.execute(delete(ModelCall).where(ModelCall.id == call_id, ModelCall.settled_at.is_(None)))


async def settle_lost(session: AsyncSession, task_id: UUID, *, keep: UUID | None = None) -> None:
    """Settle the task's calls whose attempts died, but for `keep`, at what their prompts cost, as an estimate.

    Not at what they had reserved, an upper bound that would eat budgets.
    """
    lost = select(ModelCall).where(ModelCall.task_id == task_id, ModelCall.settled_at.is_(None))
    await _settle_at_input(session, lost if keep is None else lost.where(ModelCall.id != keep))


async def settle_forgotten(session: AsyncSession) -> int:
    """Settle, as above, old calls that nobody will: their task has ended or is gone, or they had none. How many.

    At most 500 at a time. Those of tasks that go on are settled by the task's next attempt.
    """
    going_on = select(AgentTaskRow.id).where(
        AgentTaskRow.id == ModelCall.task_id, AgentTaskRow.state.not_in(FINAL_STATES)
    )
    forgotten = select(ModelCall).where(
        ModelCall.settled_at.is_(None), ModelCall.at < func.now() - FORGOTTEN_AFTER, ~going_on.exists()
    )
    return await _settle_at_input(session, forgotten.limit(_FORGOTTEN_AT_ONCE))


async def paused_for(session: AsyncSession, user_id: int, *, limit: int) -> list[UUID]:
    """The user's tasks that wait for a raised monthly budget."""
    query = select(AgentTaskRow.id).where(
        AgentTaskRow.user_id == user_id,
        AgentTaskRow.state == TaskState.AWAITING_APPROVAL,
        AgentTaskRow.state_reason == PauseReason.USER_BUDGET,
    )
    return list(await session.scalars(query.order_by(AgentTaskRow.id).limit(limit)))


async def usage_by_day(
    session: AsyncSession, user_id: int, since: datetime, *, limit: int, offset: int = 0
) -> list[DayUsage]:
    """What the user's settled calls came to, newest day first, then by project and model."""
    day: ColumnElement[date] = cast(func.timezone("UTC", ModelCall.at), Date)
    query = (
        select(
            day.label("day"),
            ModelCall.project_id,
            ModelCall.model,
            func.count().label("calls"),
            cast(func.sum(ModelCall.input_tokens), ModelCall.input_tokens.type).label("input_tokens"),
            cast(func.sum(ModelCall.output_tokens), ModelCall.output_tokens.type).label("output_tokens"),
            func.sum(ModelCall.cost_usd).label("cost_usd"),
        )
        .where(ModelCall.user_id == user_id, ModelCall.at >= since, ModelCall.settled_at.is_not(None))
        .group_by(day, ModelCall.project_id, ModelCall.model)
        .order_by(day.desc(), ModelCall.project_id.nulls_last(), ModelCall.model)
        .limit(limit)
        .offset(offset)
    )
    return [DayUsage(**row) for row in (await session.execute(query)).mappings()]


async def month_of(session: AsyncSession, user_id: int, *, default_monthly_usd: Decimal | None) -> Month:
    """How the user's month stands; `default_monthly_usd` as for `reserve`."""
    own = await session.scalar(select(User.monthly_budget_usd).where(User.id == user_id))
    spent = await session.scalar(_spent_this_month(user_id))
    return Month(spent=Decimal(spent or 0), budget=default_monthly_usd if own is None else own)


async def _lock_user(session: AsyncSession, user_id: int) -> Decimal | None:
    """Have the user's calls take turns; the monthly budget of their own. Raises `NotFoundError`."""
    row = (await session.execute(_MONTHLY_BUDGET, {"user_id": user_id})).one_or_none()
    if row is None:
        raise NotFoundError("This user is gone.")
    budget: Decimal | None = row[0]
    return budget


async def _task_account(session: AsyncSession, task_id: UUID) -> _Account | None:
    """None: the task has no budget. Raises `NotFoundError`."""
    task = await session.get(AgentTaskRow, task_id)  # no round trip for who holds its lock
    if task is None:
        raise NotFoundError("This task is gone.")
    if task.budget_usd is None:
        return None
    open_usd, open_calls = _open(ModelCall.task_id == task_id)
    # One statement, so one moment: between two, a call could be settled and be in neither sum.
    query = select(AgentTaskRow.budget_usd, AgentTaskRow.cost_usd, open_usd, open_calls).where(
        AgentTaskRow.id == task_id
    )
    row = (await session.execute(query)).one_or_none()
    if row is None:
        raise NotFoundError("This task is gone.")
    return None if row[0] is None else _Account(*row)


async def _user_account(session: AsyncSession, user_id: int, budget: Decimal) -> _Account:
    spent = _spent_this_month(user_id).scalar_subquery()
    open_usd, open_calls = _open(ModelCall.user_id == user_id)
    row = (await session.execute(select(spent, open_usd, open_calls))).one()
    return _Account(budget, *row)


def _spent_this_month(user_id: int) -> Select[Decimal]:
    month = func.date_trunc("month", func.now(), "UTC")
    total = func.coalesce(func.sum(ModelCall.cost_usd), 0)
    return select(total).where(ModelCall.user_id == user_id, ModelCall.at >= month)


def _open(whose: ColumnElement[bool]) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    """What unsettled calls have reserved, and how many there are."""
    unsettled = (whose, ModelCall.settled_at.is_(None))
    reserved = select(func.coalesce(func.sum(ModelCall.reserved_usd), 0)).where(*unsettled)
    return reserved.scalar_subquery(), select(func.count()).select_from(ModelCall).where(*unsettled).scalar_subquery()


async def _settle_at_input(session: AsyncSession, calls: Select[ModelCall]) -> int:
    # In one order for all, so that two who settle several tasks' calls don't wait for each other.
    found: Sequence[ModelCall] = (await session.scalars(calls.order_by(ModelCall.task_id, ModelCall.id))).all()
    count = 0
    for call in found:
        count += await settle(
            session, call.id, input_tokens=0, output_tokens=0, cost_usd=call.input_usd, estimated=True
        )
    return count
