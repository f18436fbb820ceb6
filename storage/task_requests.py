"""New tasks, their cancellation and their retry, each in the caller's transaction.

Order of locks: the project's row, then the chat's, then the task's. Commit first, then start or signal the task's
workflow (`workflows.contracts.starts`): what is lost in between, `Reconcile` sends again.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Final
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from uuid6 import uuid7

from storage import agent_tasks, chats, event_log, projects
from storage.agent_tasks import TaskRecord, record_of
from storage.chats import ChatRecord, MessageRecord
from storage.event_listener import CANCELS_CHANNEL
from storage.tables import AgentTaskRow
from workflows.contracts.agent_tasks import ACTIVE_STATES, FINAL_STATES, CancelReason, OnBusy, TaskState
from workflows.contracts.errors import ConflictError, NotFoundError
from workflows.contracts.projects import ProjectState

MAX_QUEUED: Final = 20
"""Tasks of a chat that wait for their turn."""
MAX_OPEN: Final = 100
"""Tasks of a user that haven't ended."""
_TITLE_LENGTH: Final = 80
_OPEN: Final = (TaskState.QUEUED, *ACTIVE_STATES)


@dataclass(frozen=True)
class NewTask:
    """What is asked for. `chat_id` None: a new chat; `tools` None: all; `budget_usd` None: the user's own bounds it."""

    user_id: int
    project_id: int
    chat_id: UUID | None
    mode: str
    prompt: str
    model: str
    tools: list[str] | None
    approval_mode: str
    max_steps: int
    budget_usd: Decimal | None
    on_busy: str = OnBusy.REJECT
    client_message_id: str | None = None


@dataclass(frozen=True)
class Begun:
    """A task to start, the message that is its prompt, and the tasks that were asked to make room for it."""

    task: TaskRecord
    message: MessageRecord
    superseded: tuple[UUID, ...] = ()


async def create(session: AsyncSession, new: NewTask) -> Begun:
    """Write down a queued task, its prompt as the user's message, and a chat when none is given.

    A `client_message_id` that the chat has already gives the task and the message that came of it. Raises
    `NotFoundError` when project or chat are not the user's, `ConflictError` `chat_busy`, `queue_full` or
    `too_many_tasks`.
    """
    await _lock_project(session, new.user_id, new.project_id)
    chat = await _lock_chat(session, new)
    earlier = await _begun_before(session, chat.id, new.client_message_id)
    if earlier is not None:
        return earlier
    superseded = await _make_room(session, chat.id, OnBusy(new.on_busy))
    await _bound_open(session, new.user_id)
    row = AgentTaskRow(
        id=UUID(str(uuid7())),
        user_id=new.user_id,
        project_id=new.project_id,
        chat_id=chat.id,
        mode=new.mode,
        prompt=new.prompt,
        prompt_seq=chat.last_seq + 1,
        model=new.model,
        tools=new.tools,
        approval_mode=new.approval_mode,
        max_steps=new.max_steps,
        budget_usd=new.budget_usd,
    )
    task = await _insert(session, row)
    message = await chats.add_message(
        session,
        chat.id,
        role=chats.USER,
        content=new.prompt,
        task_id=row.id,
        step=0,
        client_message_id=new.client_message_id,
    )
    return Begun(task, message, superseded)


async def retry(session: AsyncSession, task_id: UUID) -> Begun:
    """Write down a queued task that tries again what an ended one was asked, with the chat as it was before that.

    The prompt stays the one message; what was said after it is not the new task's past. Raises `NotFoundError`,
    `ConflictError` `task_running` while the task hasn't ended, and as `create`.
    """
    first = await _locked_with_chat(session, task_id)
    if not first.ended:
        raise ConflictError("The task hasn't ended; cancel it first.", code="task_running")
    await _make_room(session, first.chat_id, OnBusy.REJECT)
    await _bound_open(session, first.user_id)
    prompt = await chats.at(session, first.chat_id, first.prompt_seq)
    if prompt is None:
        raise NotFoundError
    row = AgentTaskRow(
        id=UUID(str(uuid7())),
        user_id=first.user_id,
        project_id=first.project_id,
        chat_id=first.chat_id,
        mode=first.mode,
        prompt=first.prompt,
        prompt_seq=first.prompt_seq,
        model=first.model,
        tools=first.tools,
        approval_mode=first.approval_mode,
        max_steps=first.max_steps,
        budget_usd=first.budget_usd,
        retry_of=first.id,
    )
    return Begun(await _insert(session, row), prompt)


async def begun(session: AsyncSession, task_id: UUID) -> Begun | None:
    """The task with its prompt's message, as `create` or `retry` gave it; None when it is gone."""
    task = await agent_tasks.get(session, task_id)
    message = None if task is None else await chats.at(session, task.chat_id, task.prompt_seq)
    return None if task is None or message is None else Begun(task, message)


async def request_cancel(session: AsyncSession, task_id: UUID, reason: CancelReason) -> TaskRecord:
    """Ask the task to end. Asked again, the first reason stays; of an ended one nothing changes.

    Its activities hear it by `CANCELS_CHANNEL` as soon as the transaction commits; its workflow ends it, also while it
    is queued. Needs no other lock. Raises `NotFoundError`.
    """
    row = await agent_tasks.lock(session, task_id)
    if row is None:
        raise NotFoundError
    await _ask_to_end(session, row, reason)
    return record_of(row)


async def current(session: AsyncSession, chat_id: UUID) -> UUID | None:
    """The chat's task whose turn it is: the one under way, else the queued one that has waited longest, or None."""
    query = (
        select(AgentTaskRow.id)
        .where(AgentTaskRow.chat_id == chat_id, AgentTaskRow.state.in_(_OPEN))
        .order_by(AgentTaskRow.state == TaskState.QUEUED, AgentTaskRow.id)
        .limit(1)
    )
    return (await session.scalars(query)).first()


async def last_ended(session: AsyncSession, chat_id: UUID) -> UUID | None:
    """The newest of the chat's tasks that have ended, or None."""
    query = select(AgentTaskRow.id).where(AgentTaskRow.chat_id == chat_id, AgentTaskRow.state.in_(FINAL_STATES))
    return (await session.scalars(query.order_by(AgentTaskRow.id.desc()).limit(1))).first()


async def delete_chat(session: AsyncSession, chat: ChatRecord) -> list[UUID]:
    """Remove a chat with its messages and tasks, and return the tasks that hadn't ended.

    They are told to be cancelled, to their activities and to their watchers, whose streams end with that. Their
    workflows find no row any more and end.
    """
    await _lock_project(session, chat.user_id, chat.project_id)
    rows = await _open_tasks(session, chat.id)
    for row in rows:
        await _ask_to_end(session, row, CancelReason.USER)
        await agent_tasks.set_state(session, row, TaskState.CANCELLED, reason=CancelReason.USER)
    await chats.delete(session, chat.id)
    return [row.id for row in rows]


async def _lock_project(session: AsyncSession, user_id: int, project_id: int) -> None:
    project = await projects.lock(session, project_id)
    if project is None or project.user_id != user_id or project.state == ProjectState.DELETING:
        raise NotFoundError


async def _lock_chat(session: AsyncSession, new: NewTask) -> ChatRecord:
    if new.chat_id is None:
        return await chats.create(session, user_id=new.user_id, project_id=new.project_id, title=title_of(new.prompt))
    chat = await chats.lock(session, new.chat_id)
    if chat is None or (chat.user_id, chat.project_id) != (new.user_id, new.project_id):
        raise NotFoundError
    return chat


async def _locked_with_chat(session: AsyncSession, task_id: UUID) -> TaskRecord:
    task = await agent_tasks.get(session, task_id)
    if task is None:
        raise NotFoundError
    await _lock_project(session, task.user_id, task.project_id)
    await chats.lock(session, task.chat_id)
    row = await agent_tasks.lock(session, task_id)
    if row is None:
        raise NotFoundError
    return record_of(row)


async def _begun_before(session: AsyncSession, chat_id: UUID, client_message_id: str | None) -> Begun | None:
    message = None if client_message_id is None else await chats.sent(session, chat_id, client_message_id)
    if message is None or message.task_id is None:
        return None
    task = await agent_tasks.get(session, message.task_id)
    return None if task is None else Begun(task, message)


async def _make_room(session: AsyncSession, chat_id: UUID, on_busy: OnBusy) -> tuple[UUID, ...]:
    """What the others of the chat mean for a new task. One that was asked to end is waited for, but isn't in the way.

    Returns those that are asked to end now.
    """
    others = await _open_tasks(session, chat_id)
    busy = [row for row in others if row.cancel_requested_at is None]
    if busy and on_busy is OnBusy.REJECT:
        raise ConflictError(
            "Another task of this chat is under way: wait, cancel it, or say on_busy: enqueue or interrupt.",
            code="chat_busy",
        )
    if sum(row.state == TaskState.QUEUED for row in others) >= MAX_QUEUED:
        raise ConflictError(f"{MAX_QUEUED} tasks of this chat are queued; let one begin first.", code="queue_full")
    if on_busy is not OnBusy.INTERRUPT:
        return ()
    for row in busy:
        await _ask_to_end(session, row, CancelReason.SUPERSEDED)
    return tuple(row.id for row in busy)


async def _open_tasks(session: AsyncSession, chat_id: UUID) -> list[AgentTaskRow]:
    query = (
        select(AgentTaskRow)
        .where(AgentTaskRow.chat_id == chat_id, AgentTaskRow.state.in_(_OPEN))
        .order_by(AgentTaskRow.id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    return list(await session.scalars(query))


async def _bound_open(session: AsyncSession, user_id: int) -> None:
    """A bound on what one user can pile up. Requests for several projects at once may pass it together, by a few."""
    query = select(func.count()).where(AgentTaskRow.user_id == user_id, AgentTaskRow.state.in_(_OPEN))
    if (await session.scalar(query) or 0) >= MAX_OPEN:
        raise ConflictError(f"{MAX_OPEN} of your tasks haven't ended; let one end first.", code="too_many_tasks")


async def _insert(session: AsyncSession, row: AgentTaskRow) -> TaskRecord:
    session.add(row)
    await session.flush()
    await session.refresh(row)
    event_log.append(session, [agent_tasks.state_event(row)])
    return record_of(row)


async def _ask_to_end(session: AsyncSession, row: AgentTaskRow, reason: CancelReason) -> None:
    if row.state in FINAL_STATES:
        return
    if row.cancel_requested_at is None:
        row.cancel_requested_at, row.cancel_reason = func.clock_timestamp(), reason
        await session.flush()
        await session.refresh(row)
    await session.execute(select(func.pg_notify(CANCELS_CHANNEL, str(row.id))))


def title_of(prompt: str) -> str:
    """A chat's title from what it begins with: the first line that says something, cut to 80 characters."""
    line = next((line.strip() for line in prompt.splitlines() if line.strip()), "New chat")
    return line if len(line) <= _TITLE_LENGTH else line[: _TITLE_LENGTH - 1].rstrip() + "…"
