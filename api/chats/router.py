"""`/api/chat`: conversations in a project."""

from typing import Annotated

from fastapi import APIRouter, Query, Response, WebSocket, status

from api.agent import service as tasks
from api.agent.router import ProjectFilter
from api.agent.schemas import MessageOut
from api.auth.dependencies import CurrentUser, StreamUser
from api.auth.origins import check_origin
from api.chats import service
from api.chats.dependencies import OwnedChat, StreamedChat
from api.chats.schemas import ChatIn, ChatOut, MessageIn, ReplyOut
from api.chats.socket import ChatSocket
from api.errors import problems
from api.idempotency import HeldClaim
from api.operations import waiting
from api.pagination import Page, PageQuery
from api.prefer import WantedWait, operation_location
from api.projects.dependencies import require_owned
from api.services import ServicesDep
from storage import chats
from workflows.contracts.operations import OperationState

router = APIRouter(prefix="/api/chat", tags=["chat"])


@router.post(
    "",
    status_code=status.HTTP_201_CREATED,
    responses=problems(401, 403, 404, {409: "chat_deleted"}, 422),
)
async def create_chat(body: ChatIn, user: CurrentUser, services: ServicesDep, claim: HeldClaim) -> ChatOut:
    """Begin a chat in a project of yours."""
    return ChatOut.model_validate(await service.create(services, user.user_id, body, claim))


@router.get("", responses=problems(401, 403, 404, 422))
async def list_chats(
    user: CurrentUser, services: ServicesDep, page: PageQuery, project_id: ProjectFilter = None
) -> Page[ChatOut]:
    """Your chats, newest first; with `project_id` those of one project."""
    await require_owned(services, project_id, user)
    before, limit = page.after_uuid(), page.limit + 1
    async with services.database.reading() as session:
        found = await chats.page(session, user_id=user.user_id, project_id=project_id, before=before, limit=limit)
    shown = [ChatOut.model_validate(chat) for chat in found[: page.limit]]
    return page.answer(shown, more=len(found) > page.limit, last_id=lambda chat: chat.id)


@router.get("/{chat_id}", responses=problems(401, 403, 404, 422))
async def get_chat(chat: OwnedChat) -> ChatOut:
    """One chat."""
    return ChatOut.model_validate(chat)


@router.delete("/{chat_id}", status_code=status.HTTP_204_NO_CONTENT, responses=problems(401, 403, 404, 422))
async def delete_chat(chat: OwnedChat, services: ServicesDep) -> None:
    """Remove the chat with its messages and tasks. Those under way are cancelled, and their streams end with that."""
    await service.delete(services, chat)


@router.get("/{chat_id}/messages", responses=problems(401, 403, 404, 422))
async def list_messages(chat: OwnedChat, services: ServicesDep, page: PageQuery) -> Page[MessageOut]:
    """The chat's messages, oldest first."""
    after = page.after_id() or 0
    async with services.database.reading() as session:
        found = await chats.messages(session, chat.id, after=after, limit=page.limit + 1)
    shown = [MessageOut.model_validate(message) for message in found[: page.limit]]
    return page.answer(shown, more=len(found) > page.limit, last_id=lambda message: message.seq)


@router.post(
    "/{chat_id}/messages",
    status_code=status.HTTP_202_ACCEPTED,
    responses={
        201: {"model": ReplyOut},
        **problems(
            401,
            403,
            404,
            {409: "chat_busy`, `queue_full`, `too_many_tasks`, `task_deleted"},
            {422: "unknown_model"},
            503,
        ),
    },
)
async def send_message(
    chat: OwnedChat,
    body: MessageIn,
    services: ServicesDep,
    claim: HeldClaim,
    wait: WantedWait,
    response: Response,
) -> ReplyOut:
    """Say something; the reply is a task without tools, to be watched like any other. It goes on without you.

    The same `client_message_id` again gives the same message and task. `on_busy` as for `POST /api/agent/tasks`.
    With `Prefer: wait=N` 201 once the reply is whole.
    """
    begun = await service.send(services, chat, body, claim)
    response.headers["Location"] = operation_location(begun.task.id)
    if wait:
        operation = await waiting.find(services, begun.task.id, chat.user_id)
        if (await waiting.until_settled(services, operation, wait)).state != OperationState.RUNNING:
            response.status_code = status.HTTP_201_CREATED
    task = await tasks.view(services, begun.task.id, chat.user_id)
    return ReplyOut(message=MessageOut.model_validate(begun.message), task=task)


@router.websocket("/{chat_id}/ws")
async def open_socket(
    websocket: WebSocket,
    chat: StreamedChat,
    user: StreamUser,
    services: ServicesDep,
    since: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
) -> None:
    """Speak with a chat. Text frames, each a JSON object.

    Out: first `{type: "ready", chat_id, last_seq}`, then every event of the chat's tasks and messages after `since`
    (by default from now on) once, in order, as the `data` of SSE frames has them. In: `{type: "message", content,
    client_message_id?, model?, on_busy?}`, `{type: "cancel"}` for the task whose turn it is, `{type: "ping"}`, which
    is answered by `{type: "pong"}`. What is wrong is told by `{type: "error", code, detail, client_message_id?}`.
    Closed with 4401 `unauthenticated` or 4404 `not_found` when the access or the chat has ended, 1009 on a frame over
    1 MiB, 1012 when the server restarts: connect again with `since`. Closing stops nothing.
    """
    check_origin(websocket, services.config)
    await ChatSocket(services, user, chat, websocket).serve(since)
