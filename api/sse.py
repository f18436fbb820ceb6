"""Server-sent events: one encoder for every stream. It says when it is quiet, and ends whole when the server does."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Final, TypeVar

import anyio
from sse_starlette import EventSourceResponse
from sse_starlette import ServerSentEvent as BaseFrame
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from workflows.contracts.errors import UnavailableError
from workflows.contracts.events import Event

PING_S: Final = 15
"""Seconds of silence after which a comment is sent, so that no proxy takes the stream for dead."""
ACCESS_CHECK_S: Final = 10.0
"""Seconds between two looks at whether the caller may still see a stream, of whatever kind."""
_GRACE_S: Final = 2.0
_SEND_TIMEOUT_S: Final = 60.0
_HEADERS: Final = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}


class ServerSentEvent(BaseFrame):
    """A frame: `event` its type, `id` what a reconnect sends back, `data` its text; or only a comment.

    Lines end with a single newline, which simple clients split at.
    """

    def __init__(
        self,
        data: str | None = None,
        *,
        event: str | None = None,
        id: str | None = None,  # noqa: A002 -- the field's name in the format
        comment: str | None = None,
    ) -> None:
        super().__init__(data, event=event, id=id, comment=comment, sep="\n")


Item = TypeVar("Item")
AccessCheck = Callable[[], Awaitable[bool]]


def event_frames(events: Iterable[Event]) -> bytes:
    """Events of the log, a frame each: `id` its number, `event` its type, `data` the whole (no `task_id` if none).

    In one piece: what each piece costs on its way out is most of a token's cost here.
    """
    frames = (
        ServerSentEvent(id=str(event.seq), event=event.type, data=event.model_dump_json(exclude_none=True))
        for event in events
    )
    return b"".join(frame.encode() for frame in frames)


def event_stream(
    frames: AsyncIterator[ServerSentEvent | bytes], *, allowed: AccessCheck, cut_short: ServerSentEvent | None = None
) -> EventSourceResponse:
    """Answer with `frames` until they end, the client leaves, the server stops, or `allowed` says False.

    `allowed` is asked every ten seconds, see api/auth/access.py. `frames` is closed whichever way it ends; a client
    that takes nothing for a minute is cut off. `cut_short` is the last frame of a stream that ends before its frames,
    for clients that can't tell it from a whole one otherwise.
    """
    shutdown = anyio.Event()
    return _Stream(
        _until_the_end(frames, shutdown, allowed, cut_short),
        headers=_HEADERS,
        ping=PING_S,
        ping_message_factory=lambda: ServerSentEvent(comment="ping"),
        send_timeout=_SEND_TIMEOUT_S,
        shutdown_event=shutdown,
        shutdown_grace_period=_GRACE_S,
    )


def while_allowed(pieces: AsyncIterator[Item], allowed: AccessCheck) -> AsyncIterator[Item]:
    """The pieces of a stream of another kind until they end or `allowed`, asked as above, says False."""
    return _until_the_end(pieces, anyio.Event(), allowed)


class _Stream(EventSourceResponse):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(SendTimeoutError):  # the client's trouble, not an incident of ours
            await super().__call__(scope, receive, send)


class _Ending:
    """Ends a stream from outside while it waits for its next frame: the body is complete then, and no frame is cut."""

    def __init__(self) -> None:
        self.over = False
        self.turn: anyio.CancelScope | None = None

    def end(self) -> None:
        self.over = True
        if self.turn is not None:
            self.turn.cancel()


async def _until_the_end(
    frames: AsyncIterator[Item], shutdown: anyio.Event, allowed: AccessCheck, cut_short: Item | None = None
) -> AsyncIterator[Item]:
    ending = _Ending()
    watching = asyncio.create_task(_watch(ending, shutdown, allowed), name="stream watcher")
    try:
        while not ending.over:
            with anyio.CancelScope() as ending.turn:
                try:
                    frame = await anext(frames)
                except StopAsyncIteration:
                    return
            if ending.over:
                break
            yield frame
        if cut_short is not None:
            yield cut_short
    finally:
        watching.cancel()
        if isinstance(frames, AsyncGenerator):
            with anyio.CancelScope(shield=True):
                await frames.aclose()


async def _watch(ending: _Ending, shutdown: anyio.Event, allowed: AccessCheck) -> None:
    try:
        while not shutdown.is_set() and await _still_allowed(allowed):
            with anyio.move_on_after(ACCESS_CHECK_S):
                await shutdown.wait()
    finally:
        ending.end()


async def _still_allowed(allowed: AccessCheck) -> bool:
    try:
        return await allowed()
    except UnavailableError:
        return True  # asked again at the next turn: an outage takes nobody's access away
