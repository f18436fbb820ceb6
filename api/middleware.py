"""What wraps every request, as plain ASGI: `BaseHTTPMiddleware` would buffer and cancel streams.

RequestScope      request id, security headers, the log line and the metrics of every request
(CORS)            Starlette's, with explicit origins
(OpenAIErrors)    api/openai/errors.py
ErrorBoundary     what no handler foresaw: a 500 with an incident id
BodyLimit         a bound on the request's body
(Idempotency)     api/idempotency.py
"""

import re
import time
from typing import Protocol
from uuid import uuid4

import structlog
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from api.context import RequestContext, open_context
from api.errors import incident_answer, problem_of, refuse_websocket
from workflows.contracts.errors import TooLargeError

JSON_BODY_LIMIT = 1024 * 1024
BATCH_BODY_LIMIT = 16 * 1024 * 1024
COMPLETION_BODY_LIMIT = 10 * 1024 * 1024
"""Of `/v1/chat/completions`: conversations with images in them."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_STREAMED_BODY = re.compile(r"/api/projects/[^/]+/(files/(?s:.+)|archive)")
_BATCH_BODY = re.compile(r"/api/projects/[^/]+/files:batch|/api/chat/[^/]+/ui")
"""The AI SDK's clients send their whole chat each time."""
_SECRET_ANSWERS = ("/api/auth", "/api/users")

_SECURITY_HEADERS = {
    # `sandbox` because a user's own HTML file is served from this origin too.
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; sandbox",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}

_log = structlog.get_logger("api.requests")


class RequestObserver(Protocol):
    """Told of every request that ended; `route` is its template, so that there are few of them."""

    def __call__(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Count it."""


class RequestScope:
    """The outermost layer. Every answer gets `X-Request-ID`, and each security header that its route didn't set."""

    def __init__(self, app: ASGIApp, *, https: bool, observe: RequestObserver) -> None:
        self._app = app
        self._observe = observe
        headers = {**_SECURITY_HEADERS, **({"strict-transport-security": "max-age=31536000"} if https else {})}
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        offered = Headers(scope=scope).get("x-request-id", "")
        context = open_context(scope, offered if _REQUEST_ID.fullmatch(offered) else str(uuid4()))
        status = 500
        began = time.perf_counter()

        async def decorated(message: Message) -> None:
            nonlocal status
            status = _status_of(message, status)
            if message["type"] in {"http.response.start", "websocket.http.response.start", "websocket.accept"}:
                message["headers"] = list(message.get("headers", ()))
                self._decorate(scope, message["headers"], context)
            await send(message)

        bound = structlog.contextvars.bind_contextvars(request_id=context.request_id)
        try:
            await self._app(scope, receive, decorated)
        finally:
            self._report(scope, context, status, time.perf_counter() - began)
            structlog.contextvars.reset_contextvars(**bound)

    def _decorate(self, scope: Scope, headers: list[tuple[bytes, bytes]], context: RequestContext) -> None:
        """On the raw list: a `MutableHeaders` goes through it anew for each header."""
        present = {name.lower() for name, _ in headers}
        headers.append((b"x-request-id", context.request_id.encode()))
        headers.extend(header for header in self._headers if header[0] not in present)
        if b"cache-control" not in present and scope["path"].startswith(_SECRET_ANSWERS):
            headers.append((b"cache-control", b"no-store"))

    def _report(self, scope: Scope, context: RequestContext, status: int, seconds: float) -> None:
        method = scope.get("method", "WEBSOCKET")
        # Traefik asks before every request to a preview, and for its configuration twice a second.
        write = _log.debug if scope["path"].startswith("/internal/") else _log.info
        # The path alone: a query string may hold a ticket. Headers and bodies are never logged.
        write(
            "request",
            method=method,
            path=scope["path"],
            status=status,
            duration_ms=round(seconds * 1000, 1),
            user_id=context.user_id,
        )
        route = getattr(scope.get("route"), "path", "unknown")
        self._observe(method=method, route=route, status=status, seconds=seconds)


def _status_of(message: Message, before: int) -> int:
    if message["type"] in {"http.response.start", "websocket.http.response.start"}:
        return int(message["status"])
    if message["type"] == "websocket.accept":
        return 101
    if message["type"] == "websocket.close" and before != 101:  # noqa: PLR2004 -- Switching Protocols: it was open
        return 403  # what a server answers to a WebSocket that is closed before it was accepted
    return before


class ErrorBoundary:
    """Answers what reached it: errors of the layers within as problems, the unforeseen as a 500 with an incident."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        started = False
        lost: Exception | None = None

        async def watched(message: Message) -> None:
            nonlocal started, lost
            started = started or message["type"] in {"http.response.start", "websocket.close"}
            try:
                await send(message)
            except (OSError, RuntimeError) as error:
                # The client has left: OSError; in the moment of the handshake's answer uvicorn takes it for disorder.
                lost = error
                raise

        try:
            await self._app(scope, receive, watched)
        except Exception as error:  # the top of every request
            if error is lost and scope["type"] == "websocket":
                return  # nobody is left to be told anything
            answer = problem_of(error)
            if answer is None:
                incident = str(uuid4())
                _log.error("incident", incident=incident, path=scope["path"], exc_info=error)
                answer = incident_answer(incident)
            if started:
                raise  # half an answer can't be taken back: the server cuts the connection
            if scope["type"] == "websocket":
                await refuse_websocket(WebSocket(scope, receive, send), answer)
            else:
                await answer.response()(scope, receive, send)


class BodyLimit:
    """Refuses a body over its limit with 413, before it is read when its length is announced.

    File uploads and archives are streamed and bounded by their own routes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        limit = _body_limit(scope)
        if limit is None:
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise _too_large(limit)
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                # An HTTPException, because FastAPI takes anything else for a body that it couldn't parse.
                raise HTTPException(413, _too_large(limit).detail)
            return message

        await self._app(scope, bounded, send)


def _body_limit(scope: Scope) -> int | None:
    if scope["type"] != "http":
        return None
    path = scope["path"]
    if scope["method"] == "PUT" and _STREAMED_BODY.fullmatch(path):
        return None
    if path == "/v1/chat/completions":
        return COMPLETION_BODY_LIMIT
    return BATCH_BODY_LIMIT if _BATCH_BODY.fullmatch(path) else JSON_BODY_LIMIT


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"The body is over the limit of {limit} bytes.")


class TrailingSlash:
    """Takes `/api/projects/` for `/api/projects`: a redirect would lose a POST in many clients."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        path = scope.get("path", "")
        if path.endswith("/") and path != "/" and "/files/" not in path:
            scope = {**scope, "path": path.rstrip("/") or "/"}
        await self._app(scope, receive, send)


CORS_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
CORS_REQUEST_HEADERS = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
    "Last-Event-ID",
    "Prefer",
    "Range",
    "X-Request-ID",
)
CORS_EXPOSED_HEADERS = (
    "Location",
    "ETag",
    "X-Request-ID",
    "Retry-After",
    "Content-Range",
    "Idempotency-Replayed",
    "X-Vercel-AI-UI-Message-Stream",
)
