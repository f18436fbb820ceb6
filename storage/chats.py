"""Chats and their messages, in the caller's one transaction.

Whoever writes here locks the chat's project first (`projects.lock`): messages are numbered under the chat's row lock,
and told in the project's log.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import delete as delete_rows
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from uuid6 import uuid7

from storage import event_log
from storage.tables import Chat, Message
from workflows.contracts.errors import NotFoundError
from workflows.contracts.events import EventType, NewEvent

USER: Final = "user"
ASSISTANT: Final = "assistant"


@dataclass(frozen=True)
class ChatRecord:
    """A chat as stored. `last_seq`: number of its newest message, 0 while it has none."""

    id: UUID
    project_id: int
    user_id: int
    title: str
    created_at: datetime
    last_seq: int


@dataclass(frozen=True)
class MessageRecord:
    """A message as stored; see `storage.tables.Message`."""

    id: UUID
    chat_id: UUID
    seq: int
    role: str
    content: str
    task_id: UUID | None
    step: int | None
    created_at: datetime


def _chat(row: Chat) -> ChatRecord:
    return ChatRecord(**{field: getattr(row, field) for field in ChatRecord.__dataclass_fields__})


def _message(row: Message) -> MessageRecord:
    return MessageRecord(**{field: getattr(row, field) for field in MessageRecord.__dataclass_fields__})


async def create(session: AsyncSession, *, user_id: int, project_id: int, title: str) -> ChatRecord:
    """Begin a chat."""
    row = Chat(id=UUID(str(uuid7())), user_id=user_id, project_id=project_id, title=title)
    session.add(row)
    await session.flush()
    await session.refresh(row)
    return _chat(row)


async def get(session: AsyncSession, chat_id: UUID, *, user_id: int) -> ChatRecord | None:
    """The user's chat, or None."""
    row = await session.get(Chat, chat_id, populate_existing=True)
    return _chat(row) if row is not None and row.user_id == user_id else None


async def lock(session: AsyncSession, chat_id: UUID) -> ChatRecord | None:
    """The chat, locked until the transaction ends, or None. Its project's row must be locked before it."""
    row = await session.get(Chat, chat_id, with_for_update={"key_share": True}, populate_existing=True)
    return None if row is None else _chat(row)


async def page(
    session: AsyncSession, *, user_id: int, project_id: int | None, before: UUID | None, limit: int
) -> list[ChatRecord]:
    """The user's chats, newest first, those of one project where given; from after `before`, at most `limit`."""
    query = select(Chat).where(Chat.user_id == user_id).order_by(Chat.id.desc()).limit(limit)
    if project_id is not None:
        query = query.where(Chat.project_id == project_id)
    if before is not None:
        query = query.where(Chat.id < before)
    return [_chat(row) for row in await session.scalars(query)]


async def delete(session: AsyncSession, chat_id: UUID) -> None:
    """Remove the chat with its messages and tasks; gone already is success. See `task_requests.delete_chat`."""
    await session.execute(delete_rows(Chat).where(Chat.id == chat_id))


async def add_message(
    session: AsyncSession,
    chat_id: UUID,
    *,
    role: str,
    content: str,
    task_id: UUID | None,
    step: int | None = None,
    client_message_id: str | None = None,
    message_id: UUID | None = None,
) -> MessageRecord:
    """Append a message and tell it (`message.final`). `content` must be storable: no NUL.

    A `client_message_id` that the chat has already is the caller's to look for, under the project's lock. Raises
    `NotFoundError` when the chat is gone.
    """
    raised = update(Chat).where(Chat.id == chat_id).values(last_seq=Chat.last_seq + 1)
    numbered = (await session.execute(raised.returning(Chat.last_seq, Chat.project_id))).one_or_none()
    if numbered is None:
        raise NotFoundError
    row = Message(
        id=message_id or UUID(str(uuid7())),
        chat_id=chat_id,
        seq=numbered.last_seq,
        role=role,
        content=content,
        task_id=task_id,
        step=step,
        client_message_id=client_message_id,
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    added = _message(row)
    event = NewEvent(
        project_id=numbered.project_id,
        type=EventType.MESSAGE_FINAL,
        task_id=None if task_id is None else str(task_id),
        data=message_data(added),
    )
    event_log.append(session, [event])
    return added


def message_data(told: MessageRecord) -> dict[str, Any]:
    """A message as its event tells it."""
    return {
        "id": str(told.id),
        "chat_id": str(told.chat_id),
        "seq": told.seq,
        "role": told.role,
        "content": told.content,
        "task_id": None if told.task_id is None else str(told.task_id),
        "step": told.step,
        "created_at": told.created_at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
    }


async def sent(session: AsyncSession, chat_id: UUID, client_message_id: str) -> MessageRecord | None:
    """The message that a client has sent under this id, or None."""
    query = select(Message).where(Message.chat_id == chat_id, Message.client_message_id == client_message_id)
    row = (await session.scalars(query)).one_or_none()
    return None if row is None else _message(row)


async def message(session: AsyncSession, message_id: UUID) -> MessageRecord | None:
    """The message, whoever's it is, or None."""
    row = await session.get(Message, message_id, populate_existing=True)
    return None if row is None else _message(row)


async def at(session: AsyncSession, chat_id: UUID, seq: int) -> MessageRecord | None:
    """The chat's message of this number, or None."""
    row = (await session.scalars(select(Message).where(Message.chat_id == chat_id, Message.seq == seq))).one_or_none()
    return None if row is None else _message(row)


async def messages(session: AsyncSession, chat_id: UUID, *, after: int, limit: int) -> list[MessageRecord]:
    """The chat's messages after number `after`, oldest first, at most `limit`."""
    query = select(Message).where(Message.chat_id == chat_id, Message.seq > after).order_by(Message.seq).limit(limit)
    return [_message(row) for row in await session.scalars(query)]
