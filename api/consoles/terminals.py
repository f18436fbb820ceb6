"""A WebSocket on one side, a shell on the other."""

import asyncio
import json
from urllib.parse import urlsplit

from fastapi import WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field, ValidationError

from activities.errors import RuntimeFault
from activities.ports import Terminal
from api.consoles.service import keeping_awake
from api.errors import problem_of, refuse_websocket
from api.services import ApiConfig, Services
from storage.projects import ProjectRecord
from workflows.contracts.dev_servers import LeaseKind
from workflows.contracts.errors import DeniedError

_GONE = 4404
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Resize(BaseModel):
    """A text frame from the client."""

    cols: int = Field(ge=1, le=1000)
    rows: int = Field(ge=1, le=1000)


def check_origin(websocket: WebSocket, config: ApiConfig) -> None:
    """Refuse a page of another site. A program sends no `Origin`, and has nothing that another site could abuse.

    Raises `DeniedError` `bad_origin`.
    """
    origin = websocket.headers.get("origin")
    if origin is None:
        return
    allowed = {_origin(url) for url in (config.public_url, *config.cors_origins)}
    if _origin(origin) not in allowed:
        raise DeniedError("A page of this origin may not open terminals here.", code="bad_origin")


def _origin(url: str) -> tuple[str, str | None, int | None] | None:
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return None


async def serve_terminal(
    services: Services, project: ProjectRecord, websocket: WebSocket, *, session: str | None, size: Resize
) -> None:
    """Carry bytes until the shell ends (1000), the client leaves, or the project goes (4404)."""
    async with (
        keeping_awake(services, project, LeaseKind.TERMINAL) as gone,
        services.runtime.terminal(project.ref, session=session, cols=size.cols, rows=size.rows) as terminal,
    ):
        await websocket.accept()
        await websocket.send_text(json.dumps({"type": "session", "session": terminal.session}))
        try:
            await _carry(websocket, terminal, gone)
        except RuntimeFault as fault:
            problem = problem_of(fault)
            if problem is not None:
                await refuse_websocket(websocket, problem)
        except WebSocketDisconnect:
            return


async def _carry(websocket: WebSocket, terminal: Terminal, gone: asyncio.Event) -> None:
    """Both directions at once; the first to end ends the other."""
    tasks = [
        asyncio.create_task(_from_shell(websocket, terminal), name="terminal output"),
        asyncio.create_task(_from_client(websocket, terminal), name="terminal input"),
        asyncio.create_task(gone.wait(), name="terminal's project"),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        if tasks[0] in done:
            await websocket.close(1000)
        elif tasks[2] in done:
            await websocket.close(_GONE, "not_found")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()  # looked at: the first one's has been raised


async def _from_shell(websocket: WebSocket, terminal: Terminal) -> None:
    while data := await terminal.read():
        await websocket.send_bytes(data)


async def _from_client(websocket: WebSocket, terminal: Terminal) -> None:
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
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
