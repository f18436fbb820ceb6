"""`/api/operations`: how far the work is that a POST began."""

from collections.abc import AsyncIterator
from functools import partial
from uuid import UUID

from fastapi import APIRouter, Response

from api.auth.access import still_allowed
from api.auth.dependencies import CurrentUser, StreamUser
from api.errors import problems
from api.operations import waiting
from api.operations.schemas import OperationOut
from api.services import Services, ServicesDep
from api.sse import ServerSentEvent, event_stream
from storage.operations import OperationRecord
from workflows.contracts.errors import NotFoundError
from workflows.contracts.operations import OperationState

router = APIRouter(prefix="/api/operations", tags=["operations"])

_LOOK_S = 5.0


@router.get("/{operation_id}", responses=problems(401, 403, 404, 422))
async def get_operation(operation_id: UUID, user: CurrentUser, services: ServicesDep) -> OperationOut:
    """One operation of the caller's."""
    return OperationOut.model_validate(await waiting.find(services, operation_id, user.user_id))


@router.get("/{operation_id}/events", response_class=Response, responses=problems(401, 403, 404, 422))
async def operation_events(operation_id: UUID, user: StreamUser, services: ServicesDep) -> Response:
    """SSE: an `operation` event with the operation now, then at each change.

    The stream ends with the operation, or when the caller's access does.
    """
    operation = await waiting.find(services, operation_id, user.user_id)
    return event_stream(_changes(services, operation), allowed=partial(still_allowed, services, user))


async def _changes(services: Services, operation: OperationRecord) -> AsyncIterator[ServerSentEvent]:
    shown: OperationRecord | None = None
    while shown is None or shown.state == OperationState.RUNNING:
        if operation != shown:
            data = OperationOut.model_validate(operation).model_dump_json()
            yield ServerSentEvent(event="operation", data=data)
            shown = operation
        if shown.state == OperationState.RUNNING:
            try:
                operation = await waiting.until_changed(services, shown, _LOOK_S)
            except NotFoundError:
                return  # it went with its user
