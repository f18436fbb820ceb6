"""A chat's WebSocket: the events of its tasks and messages out, messages in. Nothing that it begins ends with it."""

import asyncio
import json
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any, Final, NoReturn
from uuid import UUID

from fastapi import WebSocket, WebSocketDisconnect
from pydantic import ValidationError
from temporalio.service import RPCError

from activities.errors import ModelFault
from api import sse
from api.auth.access import still_allowed
from api.auth.dependencies import Principal
from api.auth.tokens import invalid_credentials
from api.chats import service
from api.chats.schemas import MessageIn
from api.errors import problem_of, refuse_websocket
from api.racing import until_first
from api.services import Services
from storage import chats, task_log
from storage.chats import ChatRecord
from workflows.contracts.errors import NotFoundError, StudioError, UnavailableError
from workflows.contracts.events import Event, EventType

SEND_TIMEOUT_S: Final = 60.0
"""A client that takes nothing for so long is let go; it resumes by `since`."""

_underway: Final[set[asyncio.Task[None]]] = set()
"""What clients have asked for, carried to its end also when they leave: held, so that it isn't collected."""


class _FrameError(StudioError):
    """A frame that means nothing."""


class ChatSocket:
    """One open connection."""

    def __init__(self, services: Services, user: Principal, chat: ChatRecord, websocket: WebSocket) -> None:
        self._services = services
        self._user = user
        self._chat = chat
        self._websocket = websocket

    async def serve(self, since: int | None) -> None:
        """Speak until the client leaves, or access (4401) or the chat (4404) ends. `since` None: from now on."""
        async with self._services.database.reading() as session:
            extent = await task_log.extent(session, self._chat.project_id)
        async with self._services.database.reading() as session:
            tasks = await task_log.task_ids(session, self._chat.id)
        if extent is None:
            raise NotFoundError
        position = extent.last_seq if since is None else min(since, extent.last_seq)
        await self._websocket.accept()
        try:
            await self._send({"type": "ready", "chat_id": str(self._chat.id), "last_seq": position})
            await until_first(self._tell(position, tasks), self._hear(), self._until_refused())
        except StudioError as error:
            problem = problem_of(error)
            if problem is not None:
                await refuse_websocket(self._websocket, problem)
        except (WebSocketDisconnect, TimeoutError):
            return

    async def _tell(self, position: int, tasks: set[str]) -> None:
        log = self._services.events.follow(self._chat.project_id, since=position)
        async with aclosing(log) as events:
            async for event in events:
                if _belongs(event, str(self._chat.id), tasks):
                    await self._send_text(event.model_dump_json(exclude_none=True))
        raise NotFoundError  # the log ends with its project

    async def _hear(self) -> None:
        while True:
            received = await self._websocket.receive()
            if received["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(received.get("code") or 1005)
            await _carried_out(self._answer(received.get("text")))

    async def _answer(self, text: str | None) -> None:
        """Do what a frame asks for; what is wrong with it is said, and the connection stays."""
        frame: dict[str, Any] = {}
        try:
            frame = _parsed(text)
            await self._obey(frame)
        except ValidationError as error:
            await self._complain("validation_failed", _first_fault(error), frame)
        except (StudioError, ModelFault, RPCError) as error:
            problem = problem_of(error)
            if problem is None:
                raise
            await self._complain(problem.code, problem.detail, frame)

    async def _obey(self, frame: dict[str, Any]) -> None:
        match frame.pop("type", None):
            case "message":
                await service.send(self._services, self._chat, MessageIn.model_validate(frame))
            case "cancel":
                await service.cancel_current(self._services, self._chat)
            case "ping":
                await self._send({"type": "pong"})
            case _:
                raise _FrameError("The frame's type is one of message, cancel, ping.", code="unknown_type")

    async def _complain(self, code: str, detail: str, frame: dict[str, Any]) -> None:
        said: dict[str, Any] = {"type": "error", "code": code, "detail": detail}
        if isinstance(name := frame.get("client_message_id"), str):
            said["client_message_id"] = name[:200]
        await self._send(said)

    async def _send(self, frame: dict[str, Any]) -> None:
        await self._send_text(json.dumps(frame))

    async def _send_text(self, text: str) -> None:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await self._websocket.send_text(text)

    async def _until_refused(self) -> NoReturn:
        """Raises `UnauthenticatedError` or `NotFoundError` once that is so; an outage takes nobody's access away."""
        while True:
            await asyncio.sleep(sse.ACCESS_CHECK_S)
            try:
                allowed = await still_allowed(self._services, self._user)
                there = await self._is_there(self._chat.id)
            except UnavailableError:
                continue
            if not allowed:
                raise invalid_credentials()
            if not there:
                raise NotFoundError

    async def _is_there(self, chat_id: UUID) -> bool:
        async with self._services.database.reading() as session:
            return await chats.get(session, chat_id, user_id=self._user.user_id) is not None


def _belongs(event: Event, chat_id: str, tasks: set[str]) -> bool:
    """Whether the event is of the chat. A task's first one names it, so `tasks` grows without a query."""
    if event.data.get("chat_id") == chat_id and event.type in {EventType.TASK_STATE, EventType.MESSAGE_FINAL}:
        if event.task_id is not None:
            tasks.add(event.task_id)
        return True
    return event.task_id in tasks


def _parsed(text: str | None) -> dict[str, Any]:
    try:
        frame = json.loads(text or "")
    except (ValueError, RecursionError):
        frame = None
    if not isinstance(frame, dict):
        raise _FrameError("A frame is text, and a JSON object.", code="bad_frame")
    return frame


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in fault['loc']) or 'message'}: {fault['msg']}"


async def _carried_out(work: Coroutine[Any, Any, None]) -> None:
    """Wait for it; it goes on when the connection ends meanwhile."""
    task = asyncio.create_task(work)
    _underway.add(task)
    task.add_done_callback(_underway.discard)
    await asyncio.shield(task)
