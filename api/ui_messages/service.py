"""What a client of the AI SDK asks for by its last message: a reply, another try, or to go on after its answers."""

import hashlib
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar
from uuid import UUID

from pydantic import BaseModel, ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from api.agent import service as tasks
from api.agent.schemas import DecisionIn
from api.services import Services
from api.ui_messages.schemas import ApprovalReply, Submission, UIMessage, UIRequest
from storage import agent_tasks, chats, task_requests
from storage.agent_tasks import TaskRecord
from storage.chats import ASSISTANT, USER, ChatRecord
from storage.idempotency import Claim
from storage.task_requests import Begun, NewTask
from workflows.contracts.agent_tasks import ApprovalMode, Decision, TaskMode
from workflows.contracts.errors import ConflictError, InvalidError, NotFoundError

_EDITED: Final = 150
"""Characters of a message's name that are kept in the name of its edited form."""

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class Turn:
    """The task to stream. `answered`: the client has what came before it asked for these approvals."""

    task: TaskRecord
    answered: frozenset[str] = frozenset()


async def take(services: Services, chat: ChatRecord, body: UIRequest, claim: Claim | None) -> Turn:
    """Do what the request asks for.

    Raises `InvalidError` `bad_message`, `files_not_supported`, `unknown_model` or `unknown_tool`, `NotFoundError` for
    approvals of another chat, `ConflictError` `nothing_to_regenerate`, and what `tasks.begin` does.
    """
    if body.trigger == "regenerate-message":
        return Turn(await _regenerate(services, chat, body.message_id, claim))
    if not body.messages:
        raise InvalidError("`messages` is empty; its last one is what the user says.", code="bad_message")
    last = body.messages[-1]
    replies = _replies(last)
    if replies:
        return await _go_on(services, chat, last, replies)
    return Turn((await _submit(services, chat, body, _submission(last), claim)).task)


async def running(services: Services, chat: ChatRecord) -> TaskRecord | None:
    """The chat's task whose turn it is, or None."""
    async with services.database.reading() as session:
        task_id = await task_requests.current(session, chat.id)
    if task_id is None:
        return None
    async with services.database.reading() as session:
        return await agent_tasks.get(session, task_id)


# --- a message ---


async def _submit(
    services: Services, chat: ChatRecord, body: UIRequest, said: Submission, claim: Claim | None
) -> Begun:
    agent = body.mode is TaskMode.AGENT
    new = NewTask(
        user_id=chat.user_id,
        project_id=chat.project_id,
        chat_id=chat.id,
        mode=body.mode,
        prompt=said.content,
        model=await tasks.wanted_model(services, body.model),
        tools=tasks.known_tools(body.tools) if agent else [],
        approval_mode=body.approval_mode if agent else ApprovalMode.AUTO,
        max_steps=body.max_steps,
        budget_usd=body.budget_usd,
        on_busy=body.on_busy,
    )

    async def make(session: AsyncSession) -> Begun:
        name = await _name_of(session, chat.id, said)
        return await task_requests.create(session, replace(new, client_message_id=name))

    return await tasks.begin(services, make, claim)


async def _name_of(session: AsyncSession, chat_id: UUID, said: Submission) -> str | None:
    """The message's own id, so that one sent again begins nothing new; one that was edited has the same, but isn't."""
    earlier = None if said.id is None else await chats.sent(session, chat_id, said.id)
    if said.id is None or earlier is None or earlier.content == said.content:
        return said.id
    return f"{said.id[:_EDITED]}#{hashlib.sha256(said.content.encode()).hexdigest()[:32]}"


def _submission(message: UIMessage) -> Submission:
    if message.role != USER:
        raise InvalidError("The last message isn't the user's.", code="bad_message")
    parts = [part for part in message.parts if isinstance(part, dict)]
    if any(part.get("type") == "file" for part in parts):
        detail = "Files can't be sent with a message; put them into the project."
        raise InvalidError(detail, code="files_not_supported")
    texts = [part.get("text") for part in parts if part.get("type") == "text"]
    content = "\n".join(text for text in texts if isinstance(text, str))
    return _valid(Submission, {"id": message.id or None, "content": content})


# --- another try ---


async def _regenerate(services: Services, chat: ChatRecord, name: str | None, claim: Claim | None) -> TaskRecord:
    async with services.database.reading() as session:
        task_id = await _meant(session, chat.id, name) or await task_requests.last_ended(session, chat.id)
    if task_id is None:
        raise ConflictError("No task of this chat has ended.", code="nothing_to_regenerate")
    return (await tasks.begin(services, lambda session: task_requests.retry(session, task_id), claim)).task


async def _meant(session: AsyncSession, chat_id: UUID, name: str | None) -> UUID | None:
    """The task that a message of the client belongs to, by the task's id, the message's own or the client's for it."""
    if not name or "\0" in name:
        return None
    sent = await chats.sent(session, chat_id, name)
    if sent is None:
        with suppress(ValueError):
            task = await agent_tasks.get(session, UUID(name))
            if task is not None and task.chat_id == chat_id:
                return task.id
            sent = await chats.message(session, UUID(name))
    return sent.task_id if sent is not None and sent.chat_id == chat_id else None


# --- answers to approvals ---


def _replies(message: UIMessage) -> dict[UUID, ApprovalReply]:
    """What the client has answered; a plan's answer stands at each call that waits for it."""
    if message.role != ASSISTANT:
        return {}
    answered = [part for part in message.parts if isinstance(part, dict) and part.get("state") == "approval-responded"]
    replies = [_valid(ApprovalReply, part.get("approval")) for part in answered]
    return {reply.id: reply for reply in replies}


async def _go_on(services: Services, chat: ChatRecord, message: UIMessage, replies: dict[UUID, ApprovalReply]) -> Turn:
    """Write the answers down; those to what was answered before, or has ended, change nothing."""
    async with services.database.reading() as session:
        task_id = await _meant(session, chat.id, message.id)
    async with services.database.reading() as session:
        task = None if task_id is None else await agent_tasks.get(session, task_id)
    if task is None:
        raise NotFoundError
    for reply in replies.values():
        decision = Decision.ALLOW if reply.approved else Decision.DENY
        with suppress(ConflictError):
            await tasks.decide(services, task, reply.id, DecisionIn(decision=decision, note=reply.reason), None)
    return Turn(task, frozenset(str(name) for name in replies))


def _valid(model: type[_Model], value: Any) -> _Model:  # noqa: ANN401 -- JSON of any shape
    try:
        return model.model_validate(value)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(word) for word in fault["loc"]) or "it"
        raise InvalidError(f"The last message can't be taken: {where}: {fault['msg']}", code="bad_message") from None
