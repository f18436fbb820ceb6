"""Accounts and sessions: what the routes of `/api/auth` and the change of a password do.

Whatever changes a user's sessions does so under the lock of the user's row: a rotation can't slip past a logout, nor
a login with the old password past its change.
"""

import hashlib
import unicodedata
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID, uuid4

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from api.auth.dependencies import AuthTools, Principal
from api.auth.schemas import Registration
from api.auth.tokens import invalid_credentials
from api.services import Services
from api.users.schemas import PasswordChange
from storage import credentials, throttle, users
from storage.credentials import Spending
from storage.users import UserRecord
from workflows.contracts.errors import ThrottledError, UnauthenticatedError

TICKET_LIFETIME_S = 30

_log = structlog.get_logger("api.auth")


@dataclass(frozen=True)
class SessionTokens:
    """What a client gets for a session."""

    user: UserRecord
    access_token: str
    refresh_token: str


async def register(services: Services, tools: AuthTools, body: Registration) -> SessionTokens:
    """Make an account and its first session. Raises `ConflictError` `email_taken`."""
    async with tools.passwords.turn():
        password_hash = await tools.passwords.hash(body.password)
    async with services.database.transaction() as session:
        user = await users.create(session, email=body.email, name=body.name, password_hash=password_hash)
        return await _issue(services, tools, session, user, uuid4())


async def login(services: Services, tools: AuthTools, email: str, password: str, address: str) -> SessionTokens:
    """Begin a session. Raises `UnauthenticatedError` `bad_credentials`, `ThrottledError`."""
    subjects = _subjects(email, address)
    async with tools.passwords.turn():
        async with services.database.transaction() as session:
            await _refuse_throttled(session, subjects)
            user = await users.find_by_email(session, email) if "\x00" not in email else None
        right = await tools.passwords.verify(password, user.password_hash if user else None)
        if user is None or not right or not user.is_active:
            raise await _failed(services, subjects)
    async with services.database.transaction() as session:
        now = await users.lock(session, user.id)
        if now is None or not now.is_active or now.password_hash != user.password_hash:
            raise _bad_credentials()
        await throttle.clear(session, subjects[0])
        return await _issue(services, tools, session, now, uuid4())


async def refresh(services: Services, tools: AuthTools, token: str) -> SessionTokens:
    """Rotate. Raises `UnauthenticatedError`: `token_reused` when it was spent before the grace."""
    tokens: SessionTokens | None = None
    reused = False
    # The revocation has to be committed, so the refusal is raised after the transaction, not in it.
    async with services.database.transaction() as session:
        owner = await credentials.owner_of_refresh_token(session, token)
        user = await users.lock(session, owner[0]) if owner else None
        if owner is not None and user is not None and user.is_active:
            spending = await credentials.spend_refresh_token(session, token)
            if spending in {Spending.ROTATED, Spending.GRACE}:
                tokens = await _issue(services, tools, session, user, owner[1])
            elif spending is Spending.REUSED:
                reused = True
                await credentials.revoke_family(session, owner[1])
                _log.warning("refresh token reused, session revoked", user_id=user.id)
    if reused:
        raise UnauthenticatedError("This refresh token was used before; sign in again.", code="token_reused")
    if tokens is None:
        raise invalid_credentials()
    return tokens


async def logout(services: Services, token: str | None) -> None:
    """End the token's session; an unknown token is fine."""
    if token is None:
        return
    async with services.database.transaction() as session:
        owner = await credentials.owner_of_refresh_token(session, token)
        if owner is not None:
            await users.lock(session, owner[0])
            await credentials.revoke_family(session, owner[1])


async def issue_ticket(services: Services, user: Principal) -> str:
    """A ticket with the scopes of who asks, which ends with what they asked by."""
    async with services.database.transaction() as session:
        return await credentials.add_ticket(session, user.source, user.scopes, timedelta(seconds=TICKET_LIFETIME_S))


async def change_password(
    services: Services, tools: AuthTools, principal: Principal, body: PasswordChange, address: str
) -> None:
    """Replace the password and end every session but this one. Raises as `login` does."""
    subjects = _subjects(principal.email, address)
    async with tools.passwords.turn():
        async with services.database.transaction() as session:
            await _refuse_throttled(session, subjects)
            user = await users.get(session, principal.user_id)
        if not await tools.passwords.verify(body.current, user.password_hash):
            raise await _failed(services, subjects)
        password_hash = await tools.passwords.hash(body.new)
    async with services.database.transaction() as session:
        now = await users.lock(session, user.id)
        if now is None or now.password_hash != user.password_hash:
            raise _bad_credentials()
        await users.set_password_hash(session, user.id, password_hash)
        await credentials.revoke_sessions(session, user.id, keep=principal.family)
        await throttle.clear(session, subjects[0])


async def _issue(
    services: Services, tools: AuthTools, session: AsyncSession, user: UserRecord, family: UUID
) -> SessionTokens:
    lifetime = timedelta(seconds=services.config.refresh_token_s)
    refresh_token = await credentials.add_refresh_token(session, user.id, family, lifetime)
    return SessionTokens(user, tools.tokens.issue(user.id, family), refresh_token)


def _subjects(email: str, address: str) -> list[str]:
    """Account and address, as failures are counted. The account by hash: anything can be typed into a login form."""
    folded = unicodedata.normalize("NFC", email).lower().encode("utf-8", "surrogatepass")
    return [f"account:{hashlib.sha256(folded).hexdigest()}", f"address:{address}"]


async def _refuse_throttled(session: AsyncSession, subjects: list[str]) -> None:
    wait = await throttle.seconds_to_wait(session, subjects)
    if wait is not None:
        raise ThrottledError("Too many failed sign-ins; wait a little.", retry_after=wait)


async def _failed(services: Services, subjects: list[str]) -> UnauthenticatedError:
    async with services.database.transaction() as session:
        await throttle.record_failure(session, subjects)
    return _bad_credentials()


def _bad_credentials() -> UnauthenticatedError:
    return UnauthenticatedError("The email or the password is wrong.", code="bad_credentials")
