"""What a person says to a task that is under way: steering messages, decisions on approvals, higher bounds.

Each in the caller's transaction, under the locks of the project, the chat and the task, in this order. Commit first,
then nudge the task's workflow.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from storage import agent_tasks, chats, event_log, projects
from storage.agent_tasks import TaskRecord, record_of
from storage.chats import MessageRecord
from storage.tables import AgentTaskRow, Approval, ToolCall
from storage.task_approvals import ApprovalRecord
from workflows.contracts.agent_tasks import FINAL_STATES, ApprovalKind, ApprovalState, CallState, Decision
from workflows.contracts.errors import ConflictError, InvalidError, NotFoundError
from workflows.contracts.events import EventType, NewEvent

_RESULT_SHOWN: Final = 4000


@dataclass(frozen=True)
class _Answer:
    decision: Decision
    note: str | None

    @property
    def allows(self) -> bool:
        return self.decision is not Decision.DENY


def approval_record(row: Approval) -> ApprovalRecord:
    """The row as other rooms see it."""
    return ApprovalRecord(**{field: getattr(row, field) for field in ApprovalRecord.__dataclass_fields__})


async def steer(
    session: AsyncSession, task_id: UUID, content: str, client_message_id: str | None = None
) -> MessageRecord:
    """Add a message that the task's next step will see; the same `client_message_id` gives the same message.

    Raises `NotFoundError`, `ConflictError` `task_ended`.
    """
    row = await _locked(session, task_id)
    if client_message_id is not None:
        earlier = await chats.sent(session, row.chat_id, client_message_id)
        if earlier is not None:
            return earlier
    _require_open(row)
    return await chats.add_message(
        session,
        row.chat_id,
        role=chats.USER,
        content=content,
        task_id=row.id,
        client_message_id=client_message_id,
    )


async def decide(
    session: AsyncSession, task_id: UUID, approval_id: UUID, decision: Decision, note: str | None = None
) -> ApprovalRecord:
    """Answer a question, for its call or its plan; `allow_always` answers all of the task's that ask for this tool.

    Raises `NotFoundError`, `ConflictError` `task_ended`, or `already_resolved` with `state`, `decision` and
    `resolved_at` of the first answer; of one that nobody answered in time `decision` is None.
    """
    row = await _locked(session, task_id)
    approval = await session.get(Approval, approval_id, with_for_update=True, populate_existing=True)
    if approval is None or approval.task_id != task_id:
        raise NotFoundError
    await _require_pending(session, approval)
    _require_open(row)
    answer = _Answer(decision, note)
    if approval.kind == ApprovalKind.PLAN:
        row.plan_allowed = row.plan_allowed or answer.allows
        events = await _resolve(session, row, approval, None, answer)
    else:
        events = await _resolve_call(session, row, approval, answer)
    await session.flush()
    await session.refresh(approval)
    event_log.append(session, events)
    return approval_record(approval)


async def get(session: AsyncSession, task_id: UUID, approval_id: UUID) -> ApprovalRecord:
    """The task's approval as it stands. Raises `NotFoundError`."""
    row = await session.get(Approval, approval_id, populate_existing=True)
    if row is None or row.task_id != task_id:
        raise NotFoundError
    return approval_record(row)


async def raise_bounds(
    session: AsyncSession, task_id: UUID, *, budget_usd: Decimal | None = None, max_steps: int | None = None
) -> TaskRecord:
    """Let the task go further; what isn't given stays.

    Raises `NotFoundError`, `ConflictError` `task_ended`, `InvalidError` `not_raised` when a bound is lower than now.
    """
    row = await _locked(session, task_id)
    _require_open(row)
    if budget_usd is not None:
        if row.budget_usd is None or budget_usd < row.budget_usd:
            now = "none" if row.budget_usd is None else f"${row.budget_usd.normalize():f}"
            raise InvalidError(f"A running task's budget_usd can only be raised; it is {now} now.", code="not_raised")
        row.budget_usd = budget_usd
    if max_steps is not None:
        if max_steps < row.max_steps:
            raise InvalidError(
                f"A running task's max_steps can only be raised; it is {row.max_steps} now.", code="not_raised"
            )
        row.max_steps = max_steps
    await session.flush()
    await session.refresh(row)
    return record_of(row)


async def _locked(session: AsyncSession, task_id: UUID) -> AgentTaskRow:
    task = await agent_tasks.get(session, task_id)
    if task is None or await projects.lock(session, task.project_id) is None:
        raise NotFoundError
    await chats.lock(session, task.chat_id)
    row = await agent_tasks.lock(session, task_id)
    if row is None:
        raise NotFoundError
    return row


def _require_open(row: AgentTaskRow) -> None:
    if row.state in FINAL_STATES:
        raise ConflictError(f"The task has ended: {row.state}.", code="task_ended")
    if row.cancel_requested_at is not None:
        raise ConflictError("The task is being cancelled.", code="task_ended")


async def _require_pending(session: AsyncSession, approval: Approval) -> None:
    state, resolved_at = approval.state, approval.resolved_at
    if state == ApprovalState.PENDING:
        now = await session.scalar(select(func.clock_timestamp()))
        if now is None or now < approval.expires_at:
            return
        state, resolved_at = ApprovalState.EXPIRED, approval.expires_at  # the task is about to write that down
    when = None if resolved_at is None else resolved_at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    raise ConflictError(
        f"This was answered before: {approval.decision or state}.",
        code="already_resolved",
        facts={"state": state, "decision": approval.decision, "resolved_at": when},
    )


async def _resolve_call(
    session: AsyncSession, row: AgentTaskRow, approval: Approval, answer: _Answer
) -> list[NewEvent]:
    call = await session.get(ToolCall, approval.call_id, populate_existing=True)
    if call is None:
        raise NotFoundError
    events = await _resolve(session, row, approval, call, answer)
    if answer.decision is not Decision.ALLOW_ALWAYS:
        return events
    row.allowed_tools = sorted({*row.allowed_tools, call.name})
    for other, its_call in await _others_of(session, row, approval, call.name):
        events += await _resolve(session, row, other, its_call, answer)
    return events


async def _others_of(
    session: AsyncSession, row: AgentTaskRow, approval: Approval, tool: str
) -> Iterable[tuple[Approval, ToolCall]]:
    """The task's other pending questions about a tool."""
    query = (
        select(Approval, ToolCall)
        .join(ToolCall, ToolCall.id == Approval.call_id)
        .where(
            Approval.task_id == row.id,
            Approval.id != approval.id,
            Approval.state == ApprovalState.PENDING,
            Approval.expires_at > func.clock_timestamp(),
            ToolCall.name == tool,
        )
        .order_by(Approval.id)
        .with_for_update()
    )
    return [(found[0], found[1]) for found in await session.execute(query)]


async def _resolve(
    session: AsyncSession, row: AgentTaskRow, approval: Approval, call: ToolCall | None, answer: _Answer
) -> list[NewEvent]:
    """Write an answer down; returns what watchers are told of it."""
    approval.state = ApprovalState.ALLOWED if answer.allows else ApprovalState.DENIED
    approval.decision, approval.note = answer.decision, answer.note
    approval.resolved_at = func.clock_timestamp()
    told: dict[str, Any] = {
        "approval_id": str(approval.id),
        "call": approval.call_id,
        "decision": answer.decision.value,
        "state": approval.state,
        "note": answer.note,
    }
    events = [_event(row, EventType.APPROVAL_RESOLVED, told)]
    if call is not None and call.state == CallState.AWAITING_APPROVAL:
        events += _settle_call(row, call, answer)
    await session.flush()
    return events


def _settle_call(row: AgentTaskRow, call: ToolCall, answer: _Answer) -> list[NewEvent]:
    if answer.allows:
        call.state = CallState.PENDING
        data: dict[str, Any] = {
            "step": call.step,
            "call": call.id,
            "name": call.name,
            "arguments": call.arguments,
            "state": call.state,
        }
        return [_event(row, EventType.TOOL_CALL, data)]
    call.state, call.ended_at = CallState.DENIED, func.clock_timestamp()
    call.result = denial(answer.note)
    data = {
        "step": call.step,
        "call": call.id,
        "name": call.name,
        "state": call.state,
        "result": call.result[:_RESULT_SHOWN],
        "exit_code": None,
    }
    return [_event(row, EventType.TOOL_RESULT, data)]


def denial(note: str | None) -> str:
    """What the model is told of a call that its user has denied."""
    said = "Not done. The user did not allow it."
    return f"{said} They say: {note}" if note else said


def _event(row: AgentTaskRow, kind: EventType, data: dict[str, Any]) -> NewEvent:
    return NewEvent(project_id=row.project_id, type=kind, task_id=str(row.id), data=data)
