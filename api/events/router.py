"""`/api/projects/{id}/events`: everything that happens in a project."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Response

from api.auth.access import may_still_see
from api.auth.dependencies import StreamUser
from api.errors import problems
from api.projects.dependencies import StreamedProject
from api.services import Services, ServicesDep
from api.sse import event_frames, event_stream
from workflows.contracts.errors import InvalidError
from workflows.contracts.events import EventType

router = APIRouter(prefix="/api/projects/{project_id}", tags=["events"])

_MAX_SEQ = 2**63 - 1


async def wanted_types(
    types: Annotated[
        str | None, Query(max_length=1000, description="Only these types, separated by commas; all when absent.")
    ] = None,
) -> frozenset[str] | None:
    """The types asked for, None for all. Raises `InvalidError` `unknown_event_type`."""
    if not types:
        return None
    known = {event_type.value for event_type in EventType}
    chosen = frozenset(word.strip() for word in types.split(","))
    unknown = sorted(chosen - known)
    if unknown:
        detail = f"There is no event type {unknown[0]!r}; there are {', '.join(sorted(known))}."
        raise InvalidError(detail, code="unknown_event_type")
    return chosen


async def resume_point(
    since: Annotated[int, Query(ge=0, le=_MAX_SEQ, description="Begin after this number.")] = 0,
    last_event_id: Annotated[
        str | None,
        Header(
            pattern=r"^\d{0,18}$",
            description="What a reconnecting EventSource sends: the last number seen. It wins over `since`.",
        ),
    ] = None,
) -> int:
    """The number after which to begin. A reconnect repeats the first address, so its header knows better."""
    return int(last_event_id) if last_event_id else since


@router.get(
    "/events",
    response_class=Response,
    responses={
        200: {"description": "Events as they happen.", "content": {"text/event-stream": {}}},
        **problems(401, 403, 404, {422: "unknown_event_type"}, 503),
    },
)
async def project_events(
    project: StreamedProject,
    user: StreamUser,
    services: ServicesDep,
    since: Annotated[int, Depends(resume_point)],
    types: Annotated[frozenset[str] | None, Depends(wanted_types)],
) -> Response:
    """The project's log as server-sent events: every event after `since` once, in order, then live.

    A frame is `id: <seq>`, `event: <type>`, `data: {seq, type, project_id, task_id?, at, data}`. A comment is sent
    every 15 s. The stream ends when the project is gone or the caller's access is.
    """
    allowed = partial(may_still_see, services, user, project)
    return event_stream(_frames(services, project.id, since, types), allowed=allowed)


async def _frames(
    services: Services, project_id: int, since: int, types: frozenset[str] | None
) -> AsyncIterator[bytes]:
    async with aclosing(services.events.follow_batches(project_id, since=since, types=types)) as batches:
        async for batch in batches:
            yield event_frames(batch)
