"""A WebSocket on one side, a shell on the other."""

import asyncio
import json
from collections.abc import Coroutine
from typing import Any, NoReturn

from fastapi import WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field, ValidationError

from activities.errors import RuntimeFault
from activities.ports import Terminal
from api.auth.access import until_refused
from api.auth.dependencies import Principal
from api.consoles.service import keeping_awake
from api.errors import problem_of, refuse_websocket
from api.racing import until_first
from api.services import Services
from storage.projects import ProjectRecord
from workflows.contracts.dev_servers import LeaseKind
from workflows.contracts.errors import NotFoundError, StudioError


class Resize(BaseModel):
    """A text frame from the client."""

    cols: int = Field(ge=1, le=1000)
    rows: int = Field(ge=1, le=1000)


async def serve_terminal(
    services: Services,
    user: Principal,
    project: ProjectRecord,
    websocket: WebSocket,
    *,
    session: str | None,
    size: Resize,
) -> None:
    """Carry bytes until the client leaves, the shell ends (1000), or access (4401) or the project (4404) does."""
    async with (
        keeping_awake(services, project, LeaseKind.TERMINAL) as gone,
        services.runtime.terminal(project.ref, session=session, cols=size.cols, rows=size.rows) as terminal,
    ):
        await websocket.accept()
        await websocket.send_text(json.dumps({"type": "session", "session": terminal.session}))
        try:
            await _carry(websocket, terminal, gone, until_refused(services, user, project))
            await websocket.close(1000)
        except (RuntimeFault, StudioError) as error:
            problem = problem_of(error)
            if problem is not None:
                await refuse_websocket(websocket, problem)
        except WebSocketDisconnect:
            return


async def _carry(
    websocket: WebSocket, terminal: Terminal, gone: asyncio.Event, refusal: Coroutine[Any, Any, NoReturn]
) -> None:
    """Both directions at once, until the shell ends.

    Raises `WebSocketDisconnect` when the client has left, what `refusal` raises, `NotFoundError` when the project is
    `gone`.
    """
    await until_first(_from_shell(websocket, terminal), _from_client(websocket, terminal), _until_gone(gone), refusal)


async def _until_gone(gone: asyncio.Event) -> None:
    await gone.wait()
    raise NotFoundError


async def _from_shell(websocket: WebSocket, terminal: Terminal) -> None:
    while data := await terminal.read():
        await websocket.send_bytes(data)


async def _from_client(websocket: WebSocket, terminal: Terminal) -> None:
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or 1005)
        if message.get("bytes"):
            await terminal.write(message["bytes"])
        elif (size := _resize(message.get("text") or "")) is not None:
            await terminal.resize(size.cols, size.rows)


def _resize(text: str) -> Resize | None:
    """A resize frame's size; None for any other, which a later version may know."""
    try:
        value = json.loads(text)
        return Resize.model_validate(value) if isinstance(value, dict) and value.get("type") == "resize" else None
    except (ValueError, RecursionError, ValidationError):
        return None
