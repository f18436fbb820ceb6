"""The stream of one task, for the AI SDK."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Final

from fastapi import Response

from api.auth.access import may_still_see
from api.auth.dependencies import Principal
from api.services import Services
from api.sse import ServerSentEvent, event_stream
from api.ui_messages.parts import MessageParts, Past, asks_user, ends_message
from api.ui_messages.text import Part
from storage import projects, task_approvals, task_log, task_steps
from storage.agent_tasks import TaskRecord
from workflows.contracts.agent_tasks import ApprovalState
from workflows.contracts.errors import NotFoundError
from workflows.contracts.events import Event, EventType

HEADER: Final = "x-vercel-ai-ui-message-stream"
VERSION: Final = "v1"
_CUT_SHORT: Final[Part] = {
    "type": "error",
    "errorText": "The stream was ended by the server. The task goes on: resume the stream.",
}
_GONE: Final[Part] = {"type": "error", "errorText": "The project is gone."}


async def answer_stream(
    services: Services, user: Principal, task: TaskRecord, *, answered: frozenset[str] = frozenset()
) -> Response:
    """The task's stream from its beginning; from where the approvals `answered` were asked for, where there are some.

    Raises `NotFoundError` when the project is gone.
    """
    async with services.database.reading() as session:
        extent = await task_log.extent(session, task.project_id, task.id)
    async with services.database.reading() as session:
        project = await projects.get(session, task.project_id)
    if extent is None or project is None:
        raise NotFoundError
    async with services.database.reading() as session:
        if extent.final_seq is None:
            texts = await task_log.told_texts(session, task.id, upto=extent.last_seq)
        else:  # what was streamed of it may be pruned
            texts = await task_steps.texts(session, task.id)
    parts = MessageParts(task, Past(extent.last_seq, texts))
    response = event_stream(
        _frames(services, task, parts, answered),
        allowed=partial(may_still_see, services, user, project),
        cut_short=ServerSentEvent(_encoded(_CUT_SHORT)),
    )
    response.headers[HEADER] = VERSION
    return response


async def _frames(
    services: Services, task: TaskRecord, parts: MessageParts, answered: frozenset[str]
) -> AsyncIterator[ServerSentEvent]:
    async with aclosing(_parts(services, task, parts, answered)) as stream:
        async for part in stream:
            yield ServerSentEvent(_encoded(part))
    yield ServerSentEvent("[DONE]")


async def _parts(
    services: Services, task: TaskRecord, parts: MessageParts, answered: frozenset[str]
) -> AsyncGenerator[Part]:
    yield parts.begin()
    known = bool(answered)  # by the client: what came before its answer, which it sends again with it
    async with aclosing(services.events.follow(task.project_id, task_id=str(task.id))) as events:
        async for event in events:
            known = known and not _is_answer(event, answered)
            for part in parts.of(event):
                if not known:
                    yield part
            if ends_message(event):
                return
            if asks_user(event):
                known = known and not answered <= parts.asked
                if not known and await _is_pending(services, task, parts):
                    for part in parts.pause():
                        yield part
                    return
    yield _GONE


def _is_answer(event: Event, answered: frozenset[str]) -> bool:
    return event.type == EventType.APPROVAL_RESOLVED and event.data["approval_id"] in answered


async def _is_pending(services: Services, task: TaskRecord, parts: MessageParts) -> bool:
    """Whether the pause just told of is one still, and not one of the past."""
    async with services.database.reading() as session:
        asked = await task_approvals.of_step(session, task.id, parts.step)
    return any(approval.state == ApprovalState.PENDING for approval in asked)


def _encoded(part: Part) -> str:
    return json.dumps(part, ensure_ascii=False)
