"""What follows from a step's calls: which tools a task is offered, what is asked for first, and what comes next."""

from typing import Any, Final

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from activities.agent.accounting import Accounts
from activities.ports import RequestedCall, ToolSchema
from activities.tools import registry
from activities.tools.tool import Tool, ToolFailure
from storage import agent_tasks, task_approvals, task_steps
from storage.tables import AgentTaskRow
from storage.task_approvals import ApprovalRecord, Question
from storage.task_steps import CallRecord, NewCall, StepRecord
from workflows.contracts.agent_tasks import (
    ApprovalKind,
    ApprovalMode,
    ApprovalState,
    CallState,
    NextMove,
    PauseReason,
    PlannedCall,
    StepOutcome,
    TaskMode,
    TaskState,
)

PLAN_TOOL: Final = "submit_plan"
_RUNNABLE: Final = (CallState.PENDING, CallState.RUNNING)


def offered(row: AgentTaskRow) -> tuple[ToolSchema, ...]:
    """The tools that the task is told of; while it plans, also the one that submits a plan."""
    if row.mode == TaskMode.CHAT:
        return ()
    names = [name for name in registry.all_tools() if name != PLAN_TOOL and (row.tools is None or name in row.tools)]
    planning = row.approval_mode == ApprovalMode.PLAN and not row.plan_allowed
    return registry.schemas([*names, PLAN_TOOL] if planning else names)


def understood(call: RequestedCall) -> tuple[Tool[Any] | None, BaseModel | None]:
    """The tool and its arguments, as far as the model has written them rightly."""
    tool = registry.all_tools().get(call.name)
    if tool is None:
        return None, None
    try:
        return tool, registry.parse(tool, call.arguments)
    except ToolFailure:
        return tool, None


def new_call(call_id: str, call: RequestedCall, wave: int, *, answer: str | None = None) -> NewCall:
    """A call to store. `answer`: what the model is told at once, instead of a run."""
    state = CallState.PENDING if answer is None else CallState.FAILED
    return NewCall(id=call_id, name=call.name, arguments=call.arguments, wave=wave, state=state, result=answer)


async def ask(session: AsyncSession, row: AgentTaskRow, step: StepRecord, *, limit_s: float) -> None:
    """Ask the owner for what the step's calls need: each call with effects, or the plan as one."""
    if row.approval_mode == ApprovalMode.AUTO or (row.approval_mode == ApprovalMode.PLAN and row.plan_allowed):
        return
    asked = [call for call in await task_steps.calls_of(session, row.id, step.n) if _needs_leave(row, call)]
    for call in asked:
        await task_steps.set_call_state(session, call.id, CallState.AWAITING_APPROVAL)
    questions = [Question(ApprovalKind.TOOL, step.n, call.id, call.name, call.arguments) for call in asked]
    if asked and row.approval_mode == ApprovalMode.PLAN:
        plan = next((call.arguments for call in asked if call.name == PLAN_TOOL), step.text)
        questions = [Question(ApprovalKind.PLAN, step.n, None, PLAN_TOOL, plan)]
    for question in questions:
        await task_approvals.request(session, row, question, limit_s=limit_s)


def _needs_leave(row: AgentTaskRow, call: CallRecord) -> bool:
    """Whether the call has effects that were not allowed yet. One that can't be run at all needs none."""
    if call.ended or call.name in row.allowed_tools:
        return False
    tool, arguments = understood(RequestedCall(call.id, call.name, call.arguments))
    return tool is not None and arguments is not None and tool.has_effects(arguments)


async def next_move(
    session: AsyncSession, row: AgentTaskRow, n: int, calls: list[CallRecord], accounts: Accounts
) -> StepOutcome:
    """What comes after a step that has its answer, and these calls: a wait for approvals, the calls, the next step, or
    the end.
    """
    if not calls:
        more = await task_steps.has_unseen(session, row.id)
        return StepOutcome(move=NextMove.CALLS if more else NextMove.FINISH)
    asked = [call for call in calls if call.state == CallState.AWAITING_APPROVAL]
    if asked:
        await task_approvals.expire(session, row, n)
        approvals = await task_approvals.of_step(session, row.id, n)
        pending = [approval.expires_at for approval in approvals if approval.state == ApprovalState.PENDING]
        if pending:
            return await accounts.pause(session, row, PauseReason.APPROVAL, until=min(pending))
        for call in asked:
            await _apply(session, row, call, approvals)
        calls = await task_steps.calls_of(session, row.id, n)
    await agent_tasks.set_state(session, row, TaskState.RUNNING)
    runnable = [PlannedCall(id=call.id, name=call.name, wave=call.wave) for call in calls if call.state in _RUNNABLE]
    return StepOutcome(move=NextMove.CALLS, calls=runnable)


async def _apply(session: AsyncSession, row: AgentTaskRow, call: CallRecord, approvals: list[ApprovalRecord]) -> None:
    """Let the call run, or tell the model why not, as its own approval or the plan's says."""
    approval = next((found for found in approvals if found.call_id in (call.id, None)), None)
    if approval is not None and approval.state == ApprovalState.ALLOWED:
        await task_steps.set_call_state(session, call.id, CallState.PENDING)
        return
    expired = approval is None or approval.state == ApprovalState.EXPIRED
    why = "Nobody allowed it in time." if expired else "The user did not allow it."
    note = f" They say: {approval.note}" if approval is not None and approval.note else ""
    await task_steps.end_call(
        session, row.project_id, row.id, call, state=CallState.DENIED, result=f"Not done. {why}{note}"
    )
