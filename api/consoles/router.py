"""`/api/projects/{id}`: log, commands and terminals of the dev server."""

import codecs
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response, WebSocket
from fastapi.responses import StreamingResponse

from activities.errors import ContainerMissingError, RuntimeFault
from api.auth.access import may_still_see
from api.auth.dependencies import CurrentUser, StreamUser
from api.auth.origins import check_origin
from api.consoles.commands import error_frame, frame, run_streamed, run_whole
from api.consoles.schemas import ExecIn, ExecOut
from api.consoles.service import EXECS, TERMINALS, require_running
from api.consoles.terminals import Resize, serve_terminal
from api.errors import problems
from api.projects.dependencies import OwnedProject, StreamedProject
from api.services import Services, ServicesDep
from api.sse import ServerSentEvent, event_stream, while_allowed
from storage.projects import ProjectRecord

router = APIRouter(prefix="/api/projects/{project_id}", tags=["consoles"])

_EVENT_STREAM = "text/event-stream"
_CLIENT_GONE = 499


async def wants_events(accept: Annotated[str, Header()] = "") -> bool:
    """Whether the client asks for server-sent events."""
    return _EVENT_STREAM in accept


WantsEvents = Annotated[bool, Depends(wants_events)]


@router.get(
    "/logs",
    response_class=Response,
    responses={
        200: {"description": "The log.", "content": {"text/plain": {}, _EVENT_STREAM: {}}},
        **problems(401, 403, 404, 422, 503),
    },
)
async def dev_server_logs(
    project: StreamedProject,
    user: StreamUser,
    services: ServicesDep,
    events: WantsEvents,
    tail: Annotated[int, Query(ge=0, le=10_000)] = 200,
    *,
    follow: bool = False,
) -> Response:
    """What the dev server has written, the last `tail` lines; with `follow` until it or the caller's access ends.

    Text, or with `Accept: text/event-stream` events `log` `{text}`. Empty when it was never started; the log of a
    stopped server is still there.
    """
    pieces = _log(services, project, tail, follow=follow)
    allowed = partial(may_still_see, services, user, project)
    if events:
        return event_stream(_log_frames(pieces), allowed=allowed)
    # An engine that is away is a 503, not a broken text; a followed log's first piece may be long in coming.
    if follow:
        await services.runtime.inspect(project.ref)
        body = while_allowed(pieces, allowed)
    else:
        body = _continued(await anext(pieces, b""), pieces)
    headers = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
    return StreamingResponse(body, media_type="text/plain; charset=utf-8", headers=headers)


@router.post(
    "/exec",
    response_model=ExecOut,
    responses={
        200: {"content": {_EVENT_STREAM: {}}},
        **problems(401, 403, 404, {409: "not_running"}, 422, 429, 503),
    },
)
async def run_command(
    project: OwnedProject,
    user: CurrentUser,
    services: ServicesDep,
    body: ExecIn,
    events: WantsEvents,
    request: Request,
) -> ExecOut | Response:
    """Run a command by `sh` in the project's folder, beside its running dev server.

    JSON when it has ended, at most 1 MiB of each stream; or with `Accept: text/event-stream` events `stdout` and
    `stderr` `{text}`, last `exit` `{exit_code, timed_out, duration_ms}`. Its whole process tree is killed when its
    time runs out (exit code 124), when the client leaves, and when the caller's access to the stream ends; what it
    left in the background ends with it.
    409 `not_running`: start the project first. 429: eight commands of yours are running.
    """
    await require_running(services, project)
    if events:
        EXECS.require(project.user_id)  # here, while the status can still be 429
        allowed = partial(may_still_see, services, user, project)
        return event_stream(run_streamed(services, project, body), allowed=allowed)
    result = await run_whole(services, project, body, request)
    return Response(status_code=_CLIENT_GONE) if result is None else result


@router.websocket("/terminal")
async def open_terminal(  # noqa: PLR0917 -- FastAPI gives them by name
    websocket: WebSocket,
    project: StreamedProject,
    user: StreamUser,
    services: ServicesDep,
    cols: Annotated[int, Query(ge=1, le=1000)] = 80,
    rows: Annotated[int, Query(ge=1, le=1000)] = 24,
    session: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")] = None,
) -> None:
    """A shell on a PTY. Binary frames are its bytes both ways; text frames JSON.

    First comes `{type: "session", session}`: connecting again with `?session=` replays the last 64 KiB and goes on.
    `{type: "resize", cols, rows}` tells the window's size. Closed with 1000 when the shell has ended, 4401
    `unauthenticated` when the caller's access has, and 4404, 4409 `not_running`, 4429 or 4503 as the same statuses say
    elsewhere.
    """
    check_origin(websocket, services.config)
    await require_running(services, project)
    with TERMINALS.take(project.user_id):
        size = Resize(cols=cols, rows=rows)
        await serve_terminal(services, user, project, websocket, session=session, size=size)


async def _log(services: Services, project: ProjectRecord, tail: int, *, follow: bool) -> AsyncIterator[bytes]:
    try:
        async with aclosing(services.runtime.logs(project.ref, tail=tail, follow=follow)) as pieces:  # type: ignore[type-var]  # drivers' iterators are generators
            async for piece in pieces:
                yield piece
    except ContainerMissingError:
        return  # it has never written anything


async def _continued(first: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for piece in pieces:
        yield piece


async def _log_frames(pieces: AsyncIterator[bytes]) -> AsyncIterator[ServerSentEvent]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    try:
        async for piece in pieces:
            if text := decoder.decode(piece):
                yield frame("log", {"text": text})
    except RuntimeFault as fault:
        yield error_frame(fault)
