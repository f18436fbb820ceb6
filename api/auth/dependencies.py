"""Who is asking: the dependencies that routes take, and the one place where credentials are checked.

CurrentUser     Authorization: Bearer <access token or API key>; an API key needs the scope of the method
StreamUser      the same, or ?ticket= in the query string (EventSource and WebSocket can't send headers)
SessionUser     signed in by password: API keys and tickets are refused (403)
TicketUser      as CurrentUser; an API key needs `read` only, whatever the method
SuperUser       as CurrentUser, superusers only (403)
"""

from dataclasses import dataclass
from typing import Annotated, Literal, cast
from uuid import UUID

from fastapi import Depends, Query
from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
from fastapi.requests import HTTPConnection
from fastapi.security.base import SecurityBase

from api.auth.passwords import Passwords
from api.auth.tokens import AccessTokens, invalid_credentials
from api.context import request_context
from api.services import Services, get_services
from storage import credentials
from storage.credentials import Source
from storage.users import UserRecord
from workflows.contracts.errors import DeniedError

READ = "read"
WRITE = "write"
SCOPES = frozenset({READ, WRITE})

_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}


@dataclass(frozen=True)
class Principal:
    """Who makes a request, and by which credential. `scopes` None: everything that the user may.

    `family` or `api_key_id`: the session or API key that it stands on, for a ticket those of who asked for it.
    """

    user_id: int
    email: str
    is_superuser: bool
    via: Literal["session", "api_key", "ticket"]
    scopes: frozenset[str] | None = None
    family: UUID | None = None
    api_key_id: UUID | None = None

    @property
    def source(self) -> Source:
        """What has to live on for as long as this is to be believed."""
        return Source(self.user_id, self.family, self.api_key_id)


class AuthTools:
    """What authentication stands on, made once per application from its services."""

    def __init__(self, services: Services) -> None:
        self.tokens = AccessTokens(services.secrets.derive("access-token"), services.config.access_token_s)
        self.passwords = Passwords()


def get_auth_tools(connection: HTTPConnection) -> AuthTools:
    """The tools of this application."""
    return cast("AuthTools", connection.app.state.auth)


async def _auth_tools(connection: HTTPConnection) -> AuthTools:
    return get_auth_tools(connection)


AuthToolsDep = Annotated[AuthTools, Depends(_auth_tools)]


async def authenticate(connection: HTTPConnection, ticket: str | None = None) -> Principal:
    """The principal of a request. Raises `UnauthenticatedError`; checked once, however many ask."""
    context = request_context(connection.scope)
    if context.principal is None:
        principal = await _authenticate(connection, ticket)
        context.principal, context.user_id = principal, principal.user_id
    return cast("Principal", context.principal)


async def _authenticate(connection: HTTPConnection, ticket: str | None) -> Principal:
    services = get_services(connection)
    token = bearer_token(connection)
    if token is None:
        if ticket is None:
            raise invalid_credentials()
        return await _by_ticket(services, ticket)
    if token.startswith(credentials.API_KEY_PREFIX):
        return await _by_api_key(services, token)
    claims = get_auth_tools(connection).tokens.read(token)
    user = await credentials.session_user(services.database, claims.user_id, claims.family)
    if user is None:
        raise invalid_credentials()
    return _principal(user, "session", None, Source(user.id, claims.family, None))


async def _by_ticket(services: Services, ticket: str) -> Principal:
    async with services.database.transaction() as session:
        found = await credentials.spend_ticket(session, ticket)
    if found is None:
        raise invalid_credentials()
    return _principal(found.user, "ticket", found.scopes, found.source)


async def _by_api_key(services: Services, key: str) -> Principal:
    found = await credentials.use_api_key(services.database, key)
    if found is None:
        raise invalid_credentials()
    user, record = found
    return _principal(user, "api_key", record.scopes, Source(user.id, None, record.id))


def _principal(
    user: UserRecord,
    via: Literal["session", "api_key", "ticket"],
    scopes: frozenset[str] | None,
    source: Source,
) -> Principal:
    return Principal(user.id, user.email, user.is_superuser, via, scopes, source.family, source.api_key_id)


def bearer_token(connection: HTTPConnection) -> str | None:
    """What the request's header offers, not looked at yet. Raises `UnauthenticatedError` for another scheme."""
    header = connection.headers.get("authorization")
    if header is None:
        return None
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer":
        raise invalid_credentials()
    return token.strip()


def _require_scope(principal: Principal, scope: str) -> None:
    if principal.scopes is not None and scope not in principal.scopes:
        raise DeniedError(f"This credential lacks the scope `{scope}`.", code="missing_scope")


def _scope_of(connection: HTTPConnection) -> str:
    return READ if connection.scope.get("method") in _SAFE_METHODS else WRITE


class BearerAuth(SecurityBase):
    """The bearer check as FastAPI's OpenAPI knows it; works for requests and WebSockets alike.

    `scope`: what an API key must have, by default that of the method; a WebSocket needs `write`.
    """

    def __init__(self, *, scope: str | None = None, session_only: bool = False, superuser: bool = False) -> None:
        self.model = HTTPBearerModel(description="An access token (15 min), or an API key `stu_…`.")
        self.scheme_name = "bearer"
        self._scope = scope
        self._session_only = session_only
        self._superuser = superuser

    async def __call__(self, connection: HTTPConnection) -> Principal:
        """The principal, or `UnauthenticatedError`, `DeniedError`."""
        return self.allow(connection, await authenticate(connection))

    def allow(self, connection: HTTPConnection, principal: Principal) -> Principal:
        """The principal, if it may do this. Raises `DeniedError`."""
        _require_scope(principal, self._scope or _scope_of(connection))
        if self._session_only and principal.via != "session":
            raise DeniedError("Only for a signed-in session, not for API keys.", code="session_required")
        if self._superuser and not principal.is_superuser:
            raise DeniedError("Only for superusers.", code="superuser_required")
        return principal


class TicketAuth(BearerAuth):
    """The bearer check, or a single-use ticket in the query string."""

    async def __call__(
        self,
        connection: HTTPConnection,
        ticket: Annotated[
            str | None, Query(description="Single use, from `POST /api/auth/ticket`, in place of the header.")
        ] = None,
    ) -> Principal:
        """The principal, or `UnauthenticatedError`, `DeniedError`."""
        return self.allow(connection, await authenticate(connection, ticket))


CurrentUser = Annotated[Principal, Depends(BearerAuth())]
StreamUser = Annotated[Principal, Depends(TicketAuth())]
SessionUser = Annotated[Principal, Depends(BearerAuth(session_only=True))]
TicketUser = Annotated[Principal, Depends(BearerAuth(scope=READ))]
SuperUser = Annotated[Principal, Depends(BearerAuth(superuser=True))]
