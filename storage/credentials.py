"""What proves who somebody is: sessions (families of refresh tokens), tickets, API keys. Stored as hashes only.

A session is a family: the chain of refresh tokens that one login began. It lives while one of its rows is neither
revoked nor expired; access tokens name their family and end with it, and so does a ticket with the session or API key
that asked for it. storage/expiry.py deletes what has expired.
"""

import hashlib
import secrets
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Final, cast
from uuid import UUID

import uuid6
from sqlalchemy import Uuid, and_, bindparam, delete, exists, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from storage.engine import Database
from storage.statements import Statement
from storage.tables import ApiKey, RefreshToken, Ticket, User
from storage.users import UserRecord
from workflows.contracts.errors import ConflictError, NotFoundError

API_KEY_PREFIX = "stu_"
REUSE_GRACE = timedelta(seconds=30)
"""For so long a second tab may spend a refresh token that the first has just rotated."""

_LAST_USED_EVERY = timedelta(minutes=1)
_SHOWN_PREFIX = 12
_API_KEYS_PER_USER = 100


def hash_secret(secret: str) -> bytes:
    """What is stored in place of a random secret: with 256 bits to guess, one SHA-256 is enough."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


# --- sessions ---------------------------------------------------------------------------------------------------


class Spending(Enum):
    """What became of a refresh token that was handed in."""

    ROTATED = auto()
    GRACE = auto()
    REUSED = auto()
    REFUSED = auto()


_USER: Final = [getattr(User, name) for name in UserRecord.__dataclass_fields__]
_ACTIVE_USER: Final = and_(User.id == bindparam("user_id"), User.is_active)
_FAMILY_LIVES: Final = exists().where(
    RefreshToken.family == bindparam("family"),
    RefreshToken.user_id == User.id,
    RefreshToken.revoked_at.is_(None),
    RefreshToken.expires_at > func.now(),
)
_SESSION_LIVES: Final = and_(_ACTIVE_USER, _FAMILY_LIVES)
_SESSION_USER: Final = Statement(select(*_USER).where(_SESSION_LIVES))


async def session_user(database: Database, user_id: int, family: UUID) -> UserRecord | None:
    """The active user of a session that lives; None for everything else."""
    rows = await database.fetch(_SESSION_USER, user_id=user_id, family=family)
    return UserRecord(*rows[0]) if rows else None


@dataclass(frozen=True)
class Viewer:
    """For whom a statement reads. `family`: their session, for the statement to prove; None when that is done."""

    user_id: int
    family: UUID | None = None


VIEWER_IS_PROVEN: Final = or_(bindparam("family", type_=Uuid).is_(None), select(User.id).where(_SESSION_LIVES).exists())
"""A condition on a `Viewer`'s `user_id` and `family`: a read that has it needs no question about the session before."""


async def add_refresh_token(session: AsyncSession, user_id: int, family: UUID, lifetime: timedelta) -> str:
    """Begin a family or lengthen its chain. Returns the token, shown only now."""
    token = secrets.token_urlsafe(32)
    session.add(
        RefreshToken(
            token_hash=hash_secret(token),
            user_id=user_id,
            family=family,
            expires_at=func.now() + lifetime,
        )
    )
    await session.flush()
    return token


async def owner_of_refresh_token(session: AsyncSession, token: str) -> tuple[int, UUID] | None:
    """User and family of a refresh token, whatever its state."""
    statement = select(RefreshToken.user_id, RefreshToken.family).where(RefreshToken.token_hash == hash_secret(token))
    row = (await session.execute(statement)).one_or_none()
    return None if row is None else (row.user_id, row.family)


async def spend_refresh_token(session: AsyncSession, token: str) -> Spending:
    """Claim a refresh token; of several at once one gets `ROTATED`. The caller holds the user's lock."""
    token_hash = hash_secret(token)
    usable = (RefreshToken.revoked_at.is_(None), RefreshToken.expires_at > func.now())
    claim = (
        update(RefreshToken)
        .where(RefreshToken.token_hash == token_hash, RefreshToken.used_at.is_(None), *usable)
        .values(used_at=func.clock_timestamp())
        .returning(RefreshToken.token_hash)
    )
    if (await session.execute(claim)).first() is not None:
        return Spending.ROTATED
    in_grace = (RefreshToken.used_at > func.clock_timestamp() - REUSE_GRACE) & usable[0] & usable[1]
    look = select(RefreshToken.used_at, in_grace.label("in_grace")).where(RefreshToken.token_hash == token_hash)
    row = (await session.execute(look)).one_or_none()
    if row is None or row.used_at is None:
        return Spending.REFUSED
    return Spending.GRACE if row.in_grace else Spending.REUSED


async def revoke_family(session: AsyncSession, family: UUID) -> None:
    """End a session. The caller holds the user's lock, so that no rotation slips through beside it."""
    await _revoke(session, RefreshToken.family == family)


async def revoke_sessions(session: AsyncSession, user_id: int, *, keep: UUID | None = None) -> None:
    """End all of a user's sessions but `keep`, and their tickets. The caller holds the user's lock."""
    others = RefreshToken.user_id == user_id
    await _revoke(session, others if keep is None else others & (RefreshToken.family != keep))
    await session.execute(delete(Ticket).where(Ticket.user_id == user_id))


async def _revoke(session: AsyncSession, which: object) -> None:
    await session.execute(
        update(RefreshToken)
        .where(which, RefreshToken.revoked_at.is_(None))  # type: ignore[arg-type]  # a column expression
        .values(revoked_at=func.now())
    )


# --- what access stands on --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """The session or API key by which a user was let in, also when a ticket stood between: with it their access ends.

    One of `family` and `api_key_id`.
    """

    user_id: int
    family: UUID | None
    api_key_id: UUID | None


_KEY_UNEXPIRED: Final = ApiKey.expires_at.is_(None) | (ApiKey.expires_at > func.now())
_KEY_LIVES: Final = exists().where(ApiKey.id == bindparam("api_key_id"), ApiKey.user_id == User.id, _KEY_UNEXPIRED)
_SOURCE_USER: Final = select(*_USER).where(_ACTIVE_USER, _FAMILY_LIVES | _KEY_LIVES)
_SOURCE_USER_NOW: Final = Statement(_SOURCE_USER)


async def lives(database: Database, source: Source) -> bool:
    """Whether the user is active, and the session lives or the API key is there and hasn't expired."""
    return bool(await database.fetch(_SOURCE_USER_NOW, **vars(source)))


# --- tickets ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpentTicket:
    """What a ticket opened: to whom, with which scopes, and on what it stands."""

    user: UserRecord
    scopes: frozenset[str] | None
    source: Source


async def add_ticket(session: AsyncSession, source: Source, scopes: frozenset[str] | None, lifetime: timedelta) -> str:
    """Issue a single-use ticket with the scopes of who asked, which ends with their session or API key."""
    ticket = secrets.token_urlsafe(32)
    session.add(
        Ticket(
            token_hash=hash_secret(ticket),
            user_id=source.user_id,
            scopes=None if scopes is None else sorted(scopes),
            family=source.family,
            api_key_id=source.api_key_id,
            expires_at=func.now() + lifetime,
        )
    )
    await session.flush()
    return ticket


async def spend_ticket(session: AsyncSession, ticket: str) -> SpentTicket | None:
    """What a ticket opens, which is gone thereafter; None when it isn't valid, or what it stands on has ended."""
    spend = (
        delete(Ticket)
        .where(Ticket.token_hash == hash_secret(ticket), Ticket.expires_at > func.now())
        .returning(Ticket.user_id, Ticket.family, Ticket.api_key_id, Ticket.scopes)
    )
    spent = (await session.execute(spend)).one_or_none()
    if spent is None:
        return None
    source = Source(spent.user_id, spent.family, spent.api_key_id)
    user = (await session.execute(_SOURCE_USER, vars(source))).one_or_none()
    return None if user is None else SpentTicket(UserRecord(*user), _scopes(spent.scopes), source)


# --- API keys ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ApiKeyRecord:
    """An API key as stored; the key itself isn't. `scopes` None: all of its user's."""

    id: UUID
    user_id: int
    name: str
    prefix: str
    scopes: frozenset[str] | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


async def add_api_key(
    session: AsyncSession,
    user_id: int,
    *,
    name: str,
    scopes: frozenset[str] | None,
    expires_at: datetime | None,
) -> tuple[ApiKeyRecord, str]:
    """Make a key; the second item is the key, shown only now. Raises `ConflictError` `api_key_limit`."""
    count = select(func.count()).select_from(ApiKey).where(ApiKey.user_id == user_id)
    if (await session.execute(count)).scalar_one() >= _API_KEYS_PER_USER:
        raise ConflictError(f"There are {_API_KEYS_PER_USER} API keys already; delete one first.", code="api_key_limit")
    key = API_KEY_PREFIX + secrets.token_urlsafe(32)
    row = ApiKey(
        id=uuid6.uuid7(),
        user_id=user_id,
        name=name,
        prefix=key[:_SHOWN_PREFIX],
        key_hash=hash_secret(key),
        scopes=None if scopes is None else sorted(scopes),
        expires_at=expires_at,
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    return _api_key(row), key


async def page_of_api_keys(
    session: AsyncSession, user_id: int, *, after: UUID | None, limit: int
) -> list[ApiKeyRecord]:
    """The user's keys in the order of their making, those after `after`."""
    statement = select(ApiKey).where(ApiKey.user_id == user_id).order_by(ApiKey.id).limit(limit)
    if after is not None:
        statement = statement.where(ApiKey.id > after)
    return [_api_key(row) for row in (await session.execute(statement)).scalars()]


async def delete_api_key(session: AsyncSession, user_id: int, key_id: UUID) -> None:
    """Delete one of the user's keys. Raises `NotFoundError`."""
    statement = delete(ApiKey).where(ApiKey.id == key_id, ApiKey.user_id == user_id).returning(ApiKey.id)
    if (await session.execute(statement)).first() is None:
        raise NotFoundError


_API_KEY: Final = [getattr(ApiKey, name) for name in ApiKeyRecord.__dataclass_fields__]
_USABLE_API_KEY: Final = Statement(
    select(*_USER, *_API_KEY, func.now())
    .join_from(User, ApiKey, ApiKey.user_id == User.id)
    .where(
        ApiKey.key_hash == bindparam("key_hash"),
        User.is_active,
        _KEY_UNEXPIRED,
    )
)


async def use_api_key(database: Database, key: str) -> tuple[UserRecord, ApiKeyRecord] | None:
    """The active user of a valid key. Its `last_used_at` is written at most once a minute."""
    rows = await database.fetch(_USABLE_API_KEY, key_hash=hash_secret(key))
    if not rows:
        return None
    *values, now = rows[0]
    user = UserRecord(*values[: len(_USER)])
    stored = ApiKeyRecord(*values[len(_USER) :])
    record = replace(stored, scopes=_scopes(cast("list[str] | None", stored.scopes)))
    if record.last_used_at is None or now - record.last_used_at >= _LAST_USED_EVERY:
        async with database.reading() as session:
            await session.execute(update(ApiKey).where(ApiKey.id == record.id).values(last_used_at=func.now()))
    return user, record


def _api_key(row: ApiKey) -> ApiKeyRecord:
    return ApiKeyRecord(
        id=row.id,
        user_id=row.user_id,
        name=row.name,
        prefix=row.prefix,
        scopes=_scopes(row.scopes),
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
    )


def _scopes(stored: list[str] | None) -> frozenset[str] | None:
    return None if stored is None else frozenset(stored)
