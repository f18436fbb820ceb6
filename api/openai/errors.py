"""Errors under `/v1` as OpenAI's clients know them: `{"error": {message, type, param, code}}`, made of problems.

| problem | status | type, code |
|---|---|---|
| no or bad credentials | 401 | `invalid_request_error`, `invalid_api_key` |
| scope, or a key that may not use the model | 403 | `permission_error` |
| no such model | 404 | `invalid_request_error`, `model_not_found` |
| a conversation that is too long | 400 | `invalid_request_error`, `context_length_exceeded` |
| any other mistake in the request | 400 | `invalid_request_error` |
| a spent budget, ours or the provider's | 429 | `insufficient_quota`; `x-should-retry: false`, it lasts |
| too often | 429 | `rate_limit_error`, `rate_limit_exceeded` |
| what is down | 503 | `server_error` |
"""

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from activities.errors import (
    ContextOverflowError,
    ModelBudgetError,
    ModelKeyRefusedError,
    ModelMissingError,
    ModelQuotaError,
    ModelThrottledError,
)
from api.errors import PROBLEM_JSON, ProblemAnswer

PREFIX: Final = "/v1"
INSUFFICIENT_QUOTA: Final = "insufficient_quota"

_INVALID: Final = "invalid_request_error"
_RATE: Final = "rate_limit_error"
_SERVER: Final = "server_error"


class _Kind(NamedTuple):
    """How a problem is told. `code` None: the problem's own."""

    status: int
    type: str
    code: str | None = None


_BY_CODE: Final[Mapping[str, _Kind]] = {
    ModelMissingError.code: _Kind(404, _INVALID, "model_not_found"),
    ContextOverflowError.code: _Kind(400, _INVALID, "context_length_exceeded"),
    ModelKeyRefusedError.code: _Kind(403, "permission_error"),
    ModelThrottledError.code: _Kind(429, _RATE, "rate_limit_exceeded"),
    **dict.fromkeys(
        (ModelBudgetError.code, ModelQuotaError.code, INSUFFICIENT_QUOTA),
        _Kind(429, INSUFFICIENT_QUOTA, INSUFFICIENT_QUOTA),
    ),
}
_BY_STATUS: Final[Mapping[int, _Kind]] = {
    401: _Kind(401, _INVALID, "invalid_api_key"),
    403: _Kind(403, "permission_error"),
    422: _Kind(400, _INVALID),
    429: _Kind(429, _RATE, "rate_limit_exceeded"),
}


def openai_error(problem: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Status and body that stand for a problem."""
    status, code = int(problem["status"]), str(problem["code"])
    usual = _Kind(status, _SERVER if status >= 500 else _INVALID)  # noqa: PLR2004 -- HTTP's own border
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status) or usual
    message, param = str(problem["detail"]), None
    if errors := problem.get("errors"):
        param = ".".join(str(word) for word in errors[0]["loc"] if word != "body") or None
        message = f"{param or 'body'}: {errors[0]['msg']}"
    if incident := problem.get("incident"):
        message = f"{message} Incident: {incident}."
    error = {"message": message, "type": kind.type, "param": problem.get("param") or param, "code": kind.code or code}
    return kind.status, {"error": error}


def error_of(answer: ProblemAnswer) -> dict[str, Any]:
    """The same, of an answer that can't have a status any more: a stream has begun."""
    return openai_error({"status": answer.status, "code": answer.code, "detail": answer.detail, **answer.extra})[1]


class OpenAIErrors:
    """Rewrites problems on their way out of `/v1`, wherever they came from: a route, a layer before it, or none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and f"{scope['path']}/".startswith(f"{PREFIX}/"):
            await self._app(scope, receive, _Rewriter(send))
        else:
            await self._app(scope, receive, send)


class _Rewriter:
    """Holds a problem back until it is whole; all else goes through."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_problem(message):
            self._start = message
        elif self._start is None:
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._answer(self._start)

    async def _answer(self, start: Message) -> None:
        status, body = openai_error(json.loads(self._body))
        content = json.dumps(body).encode("ascii")
        headers = MutableHeaders(raw=list(start["headers"]))
        headers["content-type"], headers["content-length"] = "application/json", str(len(content))
        if body["error"]["type"] == INSUFFICIENT_QUOTA:
            headers["x-should-retry"] = "false"
        await self._send({**start, "status": status, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": content})


def _is_problem(start: Message) -> bool:
    return Headers(raw=list(start.get("headers", ()))).get("content-type", "").startswith(PROBLEM_JSON)
