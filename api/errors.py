"""The one place that knows status codes: domain errors in, `application/problem+json` (RFC 9457) out.

    {type, title, status, detail, code, retryable}     every error
    + errors: [{loc, msg}]                             422 of validation
    + incident                                         500: the id under which the log has the exception
    + what the route says                              409: the state that is in the way, e.g. the first decision

On a WebSocket the same problem is the handshake's answer; once it is open, it is closed with 4000 + status
and the code as reason.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, cast

from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.requests import HTTPConnection
from fastapi.websockets import WebSocket, WebSocketState
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ExceptionHandler
from temporalio.service import RPCError, RPCStatusCode

from activities.errors import (
    ContainerCrashedError,
    ContainerMissingError,
    ContextOverflowError,
    ImageMissingError,
    ModelBudgetError,
    ModelFault,
    ModelKeyRefusedError,
    ModelMissingError,
    ModelQuotaError,
    ModelRefusedError,
    ModelThrottledError,
    ModelUnavailableError,
    NameTakenError,
    NotRunningError,
    ResourcesExhaustedError,
    RuntimeFault,
    RuntimeUnavailableError,
    SpecInvalidError,
)
from workflows.contracts.errors import (
    ConflictError,
    DeniedError,
    InvalidError,
    NotFoundError,
    PreconditionError,
    StudioError,
    ThrottledError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
)

PROBLEM_JSON = "application/problem+json"
_WEBSOCKET_CLOSE_BASE = 4000

_STATUS_OF_ERROR: dict[type[StudioError], int] = {
    UnauthenticatedError: 401,
    DeniedError: 403,
    NotFoundError: 404,
    ConflictError: 409,
    PreconditionError: 412,
    TooLargeError: 413,
    InvalidError: 422,
    ThrottledError: 429,
    UnavailableError: 503,
}

_CODE_OF_STATUS = {
    400: "bad_request",
    404: NotFoundError.default_code,
    405: "method_not_allowed",
    413: TooLargeError.default_code,
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
}

_FAULTS: dict[type[RuntimeFault | ModelFault], tuple[int, str, int | None]] = {
    RuntimeUnavailableError: (503, RuntimeUnavailableError.code, 2),
    ImageMissingError: (503, ImageMissingError.code, 30),
    ResourcesExhaustedError: (503, ResourcesExhaustedError.code, 10),
    NameTakenError: (409, NameTakenError.code, None),
    ContainerCrashedError: (409, ContainerCrashedError.code, None),
    NotRunningError: (409, NotRunningError.code, None),
    ContainerMissingError: (409, NotRunningError.code, None),  # to a client both mean: start the project first
    SpecInvalidError: (422, SpecInvalidError.code, None),
    ModelUnavailableError: (503, ModelUnavailableError.code, 2),
    ModelThrottledError: (429, ModelThrottledError.code, 2),
    ModelKeyRefusedError: (503, ModelKeyRefusedError.code, None),  # the service's own key: no client can bring another
    ModelMissingError: (404, ModelMissingError.code, None),
    ModelBudgetError: (402, ModelBudgetError.code, None),
    ModelQuotaError: (503, ModelQuotaError.code, None),
    ContextOverflowError: (413, ContextOverflowError.code, None),
    ModelRefusedError: (422, ModelRefusedError.code, None),
}
"""Status, public code and seconds until another try is worth it."""

_PASSING_RPC_STATES = {
    RPCStatusCode.UNAVAILABLE,
    RPCStatusCode.DEADLINE_EXCEEDED,
    RPCStatusCode.CANCELLED,
    RPCStatusCode.RESOURCE_EXHAUSTED,
}


class FieldError(BaseModel):
    """One thing that is wrong with the request. `loc`: the way to it, e.g. `["body", "email"]`."""

    loc: list[str | int]
    msg: str


class Problem(BaseModel):
    """Every error answer's body."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    retryable: bool = False


class ValidationProblem(Problem):
    """A 422; `errors` when the request's shape was wrong."""

    errors: list[FieldError] = []


class IncidentProblem(Problem):
    """A 500; `incident` is the id under which the log has what happened."""

    incident: str


@dataclass(frozen=True)
class ProblemAnswer:
    """An error on its way out. `extra`: further members of the body."""

    status: int
    code: str
    detail: str
    retryable: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def response(self) -> Response:
        """The HTTP answer. ASCII JSON, so that whatever a client sent back in a `loc` can be encoded."""
        problem = Problem(
            title=_title(self.status),
            status=self.status,
            detail=self.detail,
            code=self.code,
            retryable=self.retryable,
        )
        body = json.dumps(problem.model_dump() | dict(self.extra)).encode("ascii")
        return Response(body, self.status, headers=dict(self.headers), media_type=PROBLEM_JSON)


def problem_of(error: Exception) -> ProblemAnswer | None:
    """The problem that an exception stands for, or None when nobody foresaw it (a 500)."""
    if isinstance(error, StudioError):
        return _of_studio_error(error)
    if isinstance(error, (RuntimeFault, ModelFault)):
        return _of_fault(error)
    if isinstance(error, (RequestValidationError, WebSocketRequestValidationError)):
        return _of_validation(error.errors())
    if isinstance(error, HTTPException):
        return _of_http_exception(error)
    if isinstance(error, RPCError) and error.status in _PASSING_RPC_STATES:
        return _of_studio_error(UnavailableError("The workflow service doesn't answer; try again in a moment."))
    return None


def incident_answer(incident: str) -> ProblemAnswer:
    """The answer to what nobody foresaw: nothing about it but where the log has it."""
    detail = "Something went wrong on our side; the incident's id helps to find it."
    return ProblemAnswer(500, "internal_error", detail, extra={"incident": incident})


def problems(*statuses: int | Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """Declare a route's errors for its `responses=`: `problems(404, {409: "email_taken"})`, the words for the codes.

    What nearly every route can give (401, 403, 413, 422, 500, 503) is declared by api/openapi.py.
    """
    declared: dict[int | str, dict[str, Any]] = {}
    for entry in statuses:
        codes = {entry: ""} if isinstance(entry, int) else dict(entry)
        for status, code in codes.items():
            declared[status] = problem_response(status, code)
    return declared


def problem_response(status: int, code: str = "") -> dict[str, Any]:
    """The OpenAPI response object of one problem."""
    schema = {422: "ValidationProblem", 500: "IncidentProblem"}.get(status, "Problem")
    response: dict[str, Any] = {
        "description": f"{_title(status)}{f': `{code}`' if code else ''}",
        "content": {PROBLEM_JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
    }
    if status in {429, 503}:
        response["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    return response


def install_error_handlers(app: FastAPI) -> None:
    """Have the application answer every foreseen exception with its problem; the rest is the middleware's."""
    for kind in (
        StudioError,
        RuntimeFault,
        RequestValidationError,
        WebSocketRequestValidationError,
        HTTPException,
        RPCError,
    ):
        app.add_exception_handler(kind, cast("ExceptionHandler", _answer))


async def _answer(connection: HTTPConnection, error: Exception) -> Response | None:
    answer = problem_of(error)
    if answer is None:
        raise error
    if connection.scope["type"] == "websocket":
        await refuse_websocket(cast("WebSocket", connection), answer)
        return None
    return answer.response()


async def refuse_websocket(websocket: WebSocket, answer: ProblemAnswer) -> None:
    """Tell a WebSocket's client: by the handshake's answer, or by the close code once it is open."""
    if websocket.application_state is WebSocketState.CONNECTED:
        await websocket.close(_WEBSOCKET_CLOSE_BASE + answer.status, answer.code)
    elif "websocket.http.response" in websocket.scope.get("extensions", {}):
        await websocket.send_denial_response(answer.response())
    else:
        await websocket.close(_WEBSOCKET_CLOSE_BASE + answer.status, answer.code)


def _of_studio_error(error: StudioError) -> ProblemAnswer:
    status = next((_STATUS_OF_ERROR[kind] for kind in type(error).__mro__ if kind in _STATUS_OF_ERROR), 500)
    headers: dict[str, str] = {}
    if isinstance(error, (ThrottledError, UnavailableError)):
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, UnauthenticatedError):
        headers["WWW-Authenticate"] = "Bearer"
    facts = error.facts if isinstance(error, ConflictError) else {}
    return ProblemAnswer(status, error.code, error.detail, error.retryable, headers, facts)


def _of_fault(fault: RuntimeFault | ModelFault) -> ProblemAnswer:
    for kind in type(fault).__mro__:
        if kind in _FAULTS:
            status, code, retry_after = _FAULTS[kind]
            break
    else:
        status, code, retry_after = 503, fault.code, 2
    if isinstance(fault, ModelFault) and fault.retry_after is not None:
        retry_after = math.ceil(fault.retry_after)
    headers = {"Retry-After": str(retry_after)} if retry_after else {}
    return ProblemAnswer(status, code, str(fault), fault.retryable, headers)


def _of_validation(errors: Sequence[Any]) -> ProblemAnswer:
    found = [{"loc": list(error["loc"]), "msg": error["msg"]} for error in errors]
    return ProblemAnswer(
        422, "validation_failed", "The request isn't valid; `errors` says where.", extra={"errors": found}
    )


def _of_http_exception(error: HTTPException) -> ProblemAnswer:
    code = _CODE_OF_STATUS.get(error.status_code, _title(error.status_code).lower().replace(" ", "_"))
    detail = NotFoundError().detail if error.status_code == HTTPStatus.NOT_FOUND else str(error.detail)
    return ProblemAnswer(error.status_code, code, detail, headers=error.headers or {})


def _title(status: int) -> str:
    return HTTPStatus(status).phrase
