"""Tasks as clients see them, with steps, tool calls and approvals: four statements, however many tasks are shown."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from storage import agent_tasks
from storage.agent_tasks import TaskRecord, record_of
from storage.tables import AgentTaskRow, Approval, TaskStep, ToolCall
from storage.task_approvals import ApprovalRecord
from storage.task_decisions import approval_record

SHOWN_STEPS: Final = 20
"""In a list: the newest steps of each task."""
SHOWN_CHARACTERS: Final = 4000
"""In a list: how much of each text, result and unparsed argument."""


@dataclass(frozen=True)
class CallView:
    """A tool call. `arguments`: the object that the model meant, or its text when that is no JSON object."""

    id: str
    name: str
    arguments: dict[str, Any] | str
    state: str
    result: str | None
    exit_code: int | None
    started_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True)
class StepView:
    """A model's answer and what it called for, in the order written."""

    n: int
    text: str
    tool_calls: list[CallView]
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal


@dataclass(frozen=True)
class TaskView:
    """A task with all that came of it."""

    task: TaskRecord
    steps: list[StepView]
    approvals: list[ApprovalRecord]


@dataclass(frozen=True)
class TaskFilter:
    """Which tasks to list; None: all."""

    user_id: int | None = None
    project_id: int | None = None
    state: str | None = None


async def get(session: AsyncSession, task_id: UUID, *, user_id: int) -> TaskView | None:
    """The user's task, whole, or None."""
    task = await agent_tasks.get(session, task_id)
    if task is None or task.user_id != user_id:
        return None
    return (await _views(session, [task], whole=True))[0]


async def page(session: AsyncSession, wanted: TaskFilter, *, before: UUID | None, limit: int) -> list[TaskView]:
    """Tasks, newest first, from after `before`, at most `limit`; of their steps as much as a list shows."""
    return await _views(session, await records(session, wanted, before=before, limit=limit), whole=False)


async def records(session: AsyncSession, wanted: TaskFilter, *, before: UUID | None, limit: int) -> list[TaskRecord]:
    """As `page`, without what came of them."""
    query = select(AgentTaskRow).order_by(AgentTaskRow.id.desc()).limit(limit)
    for column, value in (
        (AgentTaskRow.user_id, wanted.user_id),
        (AgentTaskRow.project_id, wanted.project_id),
        (AgentTaskRow.state, wanted.state),
    ):
        if value is not None:
            query = query.where(column == value)
    if before is not None:
        query = query.where(AgentTaskRow.id < before)
    return [record_of(row) for row in await session.scalars(query)]


async def _views(session: AsyncSession, tasks: Sequence[TaskRecord], *, whole: bool) -> list[TaskView]:
    if not tasks:
        return []
    ids = [task.id for task in tasks]
    calls = await _calls(session, ids, whole=whole)
    steps: defaultdict[UUID, list[StepView]] = defaultdict(list)
    for row in await session.execute(_steps_of(ids, whole=whole)):
        usage = (row.input_tokens, row.output_tokens, row.cost_usd)
        steps[row.task_id].append(StepView(row.n, row.text, calls[row.task_id, row.n], *usage))
    asked: defaultdict[UUID, list[ApprovalRecord]] = defaultdict(list)
    for approval in await session.scalars(
        select(Approval).where(Approval.task_id.in_(ids)).order_by(Approval.step, Approval.id)
    ):
        asked[approval.task_id].append(approval_record(approval))
    return [TaskView(task, steps[task.id], asked[task.id]) for task in tasks]


def _steps_of(ids: Sequence[UUID], *, whole: bool) -> Select[Any]:
    text = TaskStep.text if whole else func.left(TaskStep.text, SHOWN_CHARACTERS)
    query = select(
        TaskStep.task_id,
        TaskStep.n,
        text.label("text"),
        TaskStep.input_tokens,
        TaskStep.output_tokens,
        TaskStep.cost_usd,
    ).where(TaskStep.task_id.in_(ids))
    return (query if whole else query.where(TaskStep.n > _hidden(TaskStep.task_id))).order_by(TaskStep.n)


async def _calls(
    session: AsyncSession, ids: Sequence[UUID], *, whole: bool
) -> defaultdict[tuple[UUID, int], list[CallView]]:
    query = select(
        ToolCall.id,
        ToolCall.task_id,
        ToolCall.step,
        ToolCall.name,
        (ToolCall.arguments if whole else func.left(ToolCall.arguments, SHOWN_CHARACTERS)).label("arguments"),
        ToolCall.state,
        (ToolCall.result if whole else func.left(ToolCall.result, SHOWN_CHARACTERS)).label("result"),
        ToolCall.exit_code,
        ToolCall.started_at,
        ToolCall.ended_at,
    ).where(ToolCall.task_id.in_(ids))
    if not whole:
        query = query.where(ToolCall.step > _hidden(ToolCall.task_id))
    found: defaultdict[tuple[UUID, int], list[CallView]] = defaultdict(list)
    for row in await session.execute(query.order_by(ToolCall.step, ToolCall.position)):
        times = (row.started_at, row.ended_at)
        call = CallView(row.id, row.name, parsed(row.arguments), row.state, row.result, row.exit_code, *times)
        found[row.task_id, row.step].append(call)
    return found


def _hidden(task_id: Any) -> Any:  # noqa: ANN401 -- SQLAlchemy's expressions
    """How many of a task's steps a list leaves out."""
    step = aliased(TaskStep)
    return select(func.max(step.n) - SHOWN_STEPS).where(step.task_id == task_id).scalar_subquery()


def parsed(arguments: str) -> dict[str, Any] | str:
    """The object that a call's arguments are, or their text when they are none, or not one that JSON can hold."""
    try:
        value = json.loads(arguments, parse_constant=_refuse)
        if "\\u" in arguments:
            json.dumps(value, ensure_ascii=False).encode()  # an escaped lone surrogate can't be sent on
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")
