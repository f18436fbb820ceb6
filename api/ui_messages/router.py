"""`/api/chat/{chat_id}/ui`: a chat for clients of the Vercel AI SDK."""

from typing import Any, Final
from uuid import UUID

from fastapi import APIRouter, Response, status

from api.agent import service as tasks
from api.agent.schemas import TaskOut
from api.auth.dependencies import CurrentUser, StreamUser
from api.chats.dependencies import OwnedChat, StreamedChat
from api.errors import problems
from api.idempotency import HeldClaim
from api.services import ServicesDep
from api.ui_messages import service
from api.ui_messages.schemas import UIRequest
from api.ui_messages.stream import HEADER, VERSION, answer_stream
from workflows.contracts.errors import NotFoundError

router = APIRouter(prefix="/api/chat", tags=["chat"])

_STREAM: Final[dict[str, Any]] = {
    "description": "The UI message stream, version 1.",
    "headers": {HEADER: {"schema": {"type": "string", "const": VERSION}}},
    "content": {"text/event-stream": {}},
}


@router.post(
    "/{chat_id}/ui",
    response_class=Response,
    responses={
        200: _STREAM,
        **problems(
            401,
            403,
            404,
            {409: "chat_busy`, `queue_full`, `too_many_tasks`, `nothing_to_regenerate`, `task_running`, `task_deleted"},
            {422: "bad_message`, `files_not_supported`, `unknown_model`, `unknown_tool"},
            503,
        ),
    },
)
async def send_ui_message(
    chat: OwnedChat, body: UIRequest, user: CurrentUser, services: ServicesDep, claim: HeldClaim
) -> Response:
    """Say something, and get the reply as a UI message stream, for the `api` of a `DefaultChatTransport`.

    Taken is the last of `messages`: the text of a user's message, whose `id` sent again gives the same reply. The
    transport's `body` may add `model`, `mode` (`chat`, the default, or `agent`), `approval_mode`, `tools`,
    `max_steps`, `budget_usd` and `on_busy`, as for `POST /api/agent/tasks`. `regenerate-message` tries again what
    came of `messageId`, by default of the last task that has ended. The chat's history stands here: an edited message
    is a new one after it.

    The message's id is the task's. Beside the parts of text, steps and tools (`dynamic`, executed here; `output` is
    `{result, exit_code}`) it has `data-task` `{id, state, reason, detail, mode}` and `data-approval` `{approvalId,
    taskId, kind, step, toolCallId, toolName, input, expiresAt, state, decision}`. A task that waits for approvals
    finishes the stream with the calls in `approval-requested`: answer by `addToolApprovalResponse` and send the
    message again (`lastAssistantMessageIsCompleteWithApprovalResponses` does), which goes on with it; or by
    `POST /api/agent/tasks/{task_id}/approvals/{approval_id}` and `resumeStream()`. A cancelled task ends with
    `abort`, a failed one with `error`.

    When a model call breaks off and its retry says something else, `reset-step` takes back what the step has shown.
    The SDK knows it from version 7 on; to older ones it is an error, which resuming heals.

    Leaving stops nothing. An `error` also ends a stream when the server stops or the access ends: resume it.
    """
    turn = await service.take(services, chat, body, claim)
    return await answer_stream(services, user, turn.task, answered=turn.answered)


@router.get(
    "/{chat_id}/ui/stream",
    response_class=Response,
    responses={200: _STREAM, 204: {"description": "Nothing runs."}, **problems(401, 403, 404, 422, 503)},
)
async def resume_ui_stream(chat: StreamedChat, user: StreamUser, services: ServicesDep) -> Response:
    """The running task's stream from its beginning: what there is at once, then live. For `resumeStream()`."""
    task = await service.running(services, chat)
    if task is None:
        return Response(status_code=status.HTTP_204_NO_CONTENT)
    return await answer_stream(services, user, task)


@router.get(
    "/{chat_id}/ui/{client_chat_id}/stream",
    response_class=Response,
    responses={200: _STREAM, 204: {"description": "Nothing runs."}, **problems(401, 403, 404, 422, 503)},
)
async def resume_ui_stream_by_default(
    chat: StreamedChat, client_chat_id: UUID, user: StreamUser, services: ServicesDep
) -> Response:
    """The same at the address that the SDK makes of `api` by itself, for a `useChat` whose `id` is the chat's."""
    if client_chat_id != chat.id:
        raise NotFoundError
    return await resume_ui_stream(chat, user, services)


@router.post(
    "/{chat_id}/ui/stop",
    status_code=status.HTTP_202_ACCEPTED,
    response_model=TaskOut,
    responses={
        204: {"description": "Nothing runs."},
        **problems(401, 403, 404, 422),
    },
)
async def stop_ui_stream(chat: OwnedChat, services: ServicesDep) -> TaskOut | Response:
    """Cancel the chat's running task; its streams end with `abort`. The SDK's own `stop()` only leaves a stream."""
    task = await service.running(services, chat)
    if task is None:
        return Response(status_code=status.HTTP_204_NO_CONTENT)
    await tasks.cancel(services, task)
    return await tasks.view(services, task.id, task.user_id)
