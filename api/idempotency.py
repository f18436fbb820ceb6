"""`Idempotency-Key` on any POST: the same key and body within a day gives the first answer again.

| the key is | then |
|---|---|
| new, expired, or its attempt died | the request is carried out and its answer kept |
| answered, same request | the first answer again, with `Idempotency-Replayed: true` |
| being worked on, same request | waits for that answer, at most `WAIT_S`, then 409 `idempotency_in_progress` |
| used for another request | 422 `idempotency_key_reused` |

An attempt may die, or fail, after its commit. A route that makes something takes its `HeldClaim` and asks
`storage.idempotency.made` first whether an earlier attempt has made it.

Kept is what would be the same again. Not kept: 5xx, and what the same request may not meet later (401, 403, 408, 425,
429); nor streams and answers over 1 MiB, which pass through as they come. Keys are per user, before a login per
address; a request whose credentials are refused isn't looked at. Answers are stored encrypted: some hold tokens.
"""

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated

import structlog
from fastapi import Depends, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth.addresses import client_address
from api.auth.dependencies import authenticate
from api.context import request_context
from api.services import Services, get_services
from storage import idempotency
from storage.idempotency import Claim, InProgressError, StoredAnswer
from workflows.contracts.errors import InvalidError, UnauthenticatedError, UnavailableError

MAX_KEY_LENGTH = 200
WAIT_S = 10.0
_POLL_S = 0.1
_LARGEST_KEPT = 1024 * 1024
_PURPOSE = "idempotency"
_NOT_KEPT = {401, 403, 408, 425, 429}
_PLAIN_HEADERS = ("content-type", "location", "etag", "retry-after", "preference-applied", "cache-control", "allow")

_log = structlog.get_logger("api.idempotency")


@dataclass
class _Answer:
    """An answer as it goes out. `kept` False: it has gone out already, in pieces."""

    start: Message = field(default_factory=dict)
    body: bytes = b""
    kept: bool = True


async def held_claim(request: Request) -> Claim | None:
    """The claim under which this request is carried out, for `storage.idempotency`; None when no key was sent."""
    return request_context(request.scope).claim


HeldClaim = Annotated[Claim | None, Depends(held_claim)]


class Idempotency:
    """The innermost layer: sees a request as its route will."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        key = Headers(scope=scope).get("idempotency-key")
        if key is None:
            await self._app(scope, receive, send)
            return
        if not 1 <= len(key) <= MAX_KEY_LENGTH:
            raise InvalidError(f"An Idempotency-Key has 1 to {MAX_KEY_LENGTH} characters.", code="bad_idempotency_key")
        request = Request(scope, receive)
        owner = await _owner(request)
        if owner is None:
            await self._app(scope, receive, send)
            return
        body = await request.body()
        held = Claim(owner, key, _hash(request, body))
        request_context(scope).claim = held
        services = get_services(request)
        stored = await _claim_or_answer(services, held)
        if stored is not None:
            await _replay(services, stored, send)
            return
        await self._first(services, held, scope, _replaying(body, receive), send)

    async def _first(self, services: Services, held: Claim, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer()
        answered = False
        try:
            async with _heartbeat(services, held):
                await self._app(scope, receive, _collecting(answer, send))
            if answer.kept:
                await _keep(services, held, answer)
                answered = True
        finally:
            if not answered:
                # Also when this task is being cancelled: a key that stays taken would block the client's next try.
                await asyncio.shield(_release(services, held))
        if answer.kept:
            await send(answer.start)
            await send({"type": "http.response.body", "body": answer.body})


async def _claim_or_answer(services: Services, wanted: Claim) -> StoredAnswer | None:
    """None when the request is ours to carry out, else the first answer."""
    deadline = time.monotonic() + WAIT_S
    while True:
        async with services.database.transaction() as session:
            if await idempotency.claim(session, wanted):
                return None
            stored = await idempotency.find(session, wanted.owner, wanted.key)
        if stored is not None and stored.request_hash != wanted.request_hash:
            raise InvalidError("This Idempotency-Key was used for another request.", code="idempotency_key_reused")
        if stored is not None and stored.status is not None:
            return stored
        if time.monotonic() >= deadline:
            raise InProgressError
        await asyncio.sleep(_POLL_S)


async def _owner(request: Request) -> str | None:
    """Whose key it is; None when the credentials are refused, which the route is left to say."""
    if "authorization" not in request.headers:
        return f"address:{client_address(request)}"
    try:
        principal = await authenticate(request)
    except UnauthenticatedError:
        return None
    return f"user:{principal.user_id}"


def _hash(request: Request, body: bytes) -> bytes:
    """Of all that makes it the same request. The cookie stands for the body where a browser refreshes."""
    digest = hashlib.sha256()
    parts = (
        request.method,
        request.scope["path"],
        request.scope.get("query_string", b"").decode("latin-1"),
        request.headers.get("cookie", "") if "authorization" not in request.headers else "",
    )
    for part in (*(part.encode() for part in parts), body):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def _replaying(body: bytes, receive: Receive) -> Receive:
    """The body that was read already, then whatever comes (a disconnect)."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _collecting(answer: _Answer, send: Send) -> Callable[[Message], Awaitable[None]]:
    """Hold an answer back until it is whole; let a stream through."""

    async def collect(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.start = message
            length = Headers(raw=message["headers"]).get("content-length", "")
            bodyless = message["status"] in {204, 304}
            answer.kept = bodyless or (length.isdecimal() and int(length) <= _LARGEST_KEPT)
            if not answer.kept:
                await send(message)
        elif answer.kept and message["type"] == "http.response.body":
            answer.body += message.get("body", b"")
        else:
            await send(message)

    return collect


async def _keep(services: Services, held: Claim, answer: _Answer) -> None:
    status = answer.start["status"]
    if status >= 500 or status in _NOT_KEPT:  # noqa: PLR2004 -- the server's own errors
        await _release(services, held)
        return
    headers = Headers(raw=answer.start["headers"])
    secret = {"cookies": headers.getlist("set-cookie"), "body": base64.b64encode(answer.body).decode()}
    sealed = services.secrets.encrypt(json.dumps(secret).encode(), _PURPOSE)
    plain = {name: headers[name] for name in _PLAIN_HEADERS if name in headers}
    try:
        async with services.database.transaction() as session:
            await idempotency.store(session, held, status=status, headers=plain, body_encrypted=sealed)
    except UnavailableError:
        # The work is done: its answer is worth more than the key, which counts as abandoned in a while.
        _log.warning("first answer not kept", status=status)


async def _release(services: Services, held: Claim) -> None:
    with suppress(UnavailableError):  # it is taken over once it counts as abandoned
        async with services.database.transaction() as session:
            await idempotency.release(session, held)


@asynccontextmanager
async def _heartbeat(services: Services, held: Claim) -> AsyncIterator[None]:
    """Keep the claim while the route works, however long it takes."""

    async def beat() -> None:
        while True:
            await asyncio.sleep(idempotency.HEARTBEAT_S)
            with suppress(UnavailableError):
                async with services.database.transaction() as session:
                    await idempotency.keep_alive(session, held)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _replay(services: Services, stored: StoredAnswer, send: Send) -> None:
    secret = json.loads(services.secrets.decrypt(stored.body_encrypted, _PURPOSE))
    body = base64.b64decode(secret["body"])
    start: Message = {"type": "http.response.start", "status": stored.status, "headers": []}
    headers = MutableHeaders(raw=start["headers"])
    for name, value in stored.headers.items():
        headers[name] = value
    for cookie in secret["cookies"]:
        headers.append("set-cookie", cookie)
    headers["content-length"] = str(len(body))
    headers["idempotency-replayed"] = "true"
    await send(start)
    await send({"type": "http.response.body", "body": body})
