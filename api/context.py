"""What is known about one request, from its first byte to its log line."""

from dataclasses import dataclass
from typing import Any, cast

from starlette.types import Scope

from storage.idempotency import Claim

_KEY = "studio.request"


@dataclass
class RequestContext:
    """Made by the outermost middleware. `user_id` is set once credentials were accepted; `principal` by api/auth.

    `claim`: on its `Idempotency-Key`, if it has one.
    """

    request_id: str
    user_id: int | None = None
    principal: Any = None
    claim: Claim | None = None


def open_context(scope: Scope, request_id: str) -> RequestContext:
    """Attach a fresh context to the request."""
    context = RequestContext(request_id)
    scope[_KEY] = context
    return context


def request_context(scope: Scope) -> RequestContext:
    """The request's context."""
    return cast("RequestContext", scope[_KEY])
