"""Chats: their making and end, and messages, each of which begins a task without tools that replies."""

from uuid import UUID

from api.agent.schemas import DEFAULT_STEPS
from api.agent.service import begin, cancel, tell_cancelled, wanted_model
from api.chats.schemas import ChatIn, MessageIn
from api.services import Services
from storage import agent_tasks, chats, idempotency, projects, task_requests
from storage.chats import ChatRecord
from storage.idempotency import Claim
from storage.task_requests import Begun, NewTask
from workflows.contracts.agent_tasks import ApprovalMode, TaskMode
from workflows.contracts.errors import ConflictError, NotFoundError


async def create(services: Services, user_id: int, body: ChatIn, claim: Claim | None) -> ChatRecord:
    """Begin a chat; the one that an earlier attempt under `claim` has made.

    Raises `NotFoundError` when the project isn't the user's, `ConflictError` `chat_deleted` when what was made is gone.
    """
    async with services.database.transaction() as session:
        earlier = await idempotency.made(session, claim)
        if earlier is not None:
            found = await chats.get(session, UUID(earlier), user_id=user_id)
            if found is None:
                raise ConflictError("The chat that this request made has been deleted since.", code="chat_deleted")
            return found
        project = await projects.lock(session, body.project_id)
        if project is None or project.user_id != user_id:
            raise NotFoundError
        chat = await chats.create(session, user_id=user_id, project_id=body.project_id, title=body.title)
        await idempotency.note_made(session, claim, str(chat.id))
    return chat


async def delete(services: Services, chat: ChatRecord) -> None:
    """Remove the chat with its messages and tasks; those under way are cancelled."""
    async with services.database.transaction() as session:
        cancelled = await task_requests.delete_chat(session, chat)
    await tell_cancelled(services, cancelled)


async def send(services: Services, chat: ChatRecord, body: MessageIn, claim: Claim | None = None) -> Begun:
    """Add the user's message and begin the task that replies. Raises `InvalidError` `unknown_model`, and as `begin`."""
    new = NewTask(
        user_id=chat.user_id,
        project_id=chat.project_id,
        chat_id=chat.id,
        mode=TaskMode.CHAT,
        prompt=body.content,
        model=await wanted_model(services, body.model),
        tools=[],
        approval_mode=ApprovalMode.AUTO,
        max_steps=DEFAULT_STEPS,
        budget_usd=None,
        on_busy=body.on_busy,
        client_message_id=body.client_message_id,
    )
    return await begin(services, lambda session: task_requests.create(session, new), claim)


async def cancel_current(services: Services, chat: ChatRecord) -> None:
    """Cancel the chat's task whose turn it is; nothing under way is success."""
    async with services.database.reading() as session:
        task_id = await task_requests.current(session, chat.id)
        task = None if task_id is None else await agent_tasks.get(session, task_id)
    if task is not None:
        await cancel(services, task)
