"""First answers to POSTs, kept for a day: one row per owner and key, claimed by one statement.

storage/expiry.py deletes the expired ones; until then they count as not there.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import and_, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from storage.tables import IdempotencyKey

KEPT = timedelta(hours=24)
HEARTBEAT_S = 10
ABANDONED = timedelta(seconds=3 * HEARTBEAT_S)
"""An attempt that hasn't said for so long that it still works has died with its process."""


@dataclass(frozen=True)
class Claim:
    """Whose key, and for which request. `request_hash`: of method, path and body."""

    owner: str
    key: str
    request_hash: bytes


@dataclass(frozen=True)
class StoredAnswer:
    """A first answer, or that there is none yet: `status` None."""

    request_hash: bytes
    status: int | None
    headers: dict[str, Any]
    body_encrypted: bytes


async def claim(session: AsyncSession, wanted: Claim) -> bool:
    """Take the key; of several at once one gets True. An expired key, and one whose attempt died, is taken over."""
    statement = insert(IdempotencyKey).values(owner=wanted.owner, key=wanted.key, request_hash=wanted.request_hash)
    expired = IdempotencyKey.created_at < func.now() - KEPT
    abandoned = and_(
        IdempotencyKey.status.is_(None),
        IdempotencyKey.created_at < func.now() - ABANDONED,
        IdempotencyKey.request_hash == wanted.request_hash,
    )
    statement = statement.on_conflict_do_update(
        index_elements=[IdempotencyKey.owner, IdempotencyKey.key],
        set_={
            "request_hash": wanted.request_hash,
            "status": None,
            "headers": None,
            "body_encrypted": None,
            "created_at": func.now(),
        },
        where=or_(expired, abandoned),
    )
    taken = await session.execute(statement.returning(IdempotencyKey.key))
    return taken.first() is not None


async def find(session: AsyncSession, owner: str, key: str) -> StoredAnswer | None:
    """What is stored under the key."""
    statement = select(IdempotencyKey).where(IdempotencyKey.owner == owner, IdempotencyKey.key == key)
    row = (await session.execute(statement)).scalar_one_or_none()
    if row is None:
        return None
    return StoredAnswer(row.request_hash, row.status, row.headers or {}, row.body_encrypted or b"")


async def keep_alive(session: AsyncSession, held: Claim) -> None:
    """Say that the attempt still works; every `HEARTBEAT_S`."""
    await session.execute(update(IdempotencyKey).where(*_unanswered(held)).values(created_at=func.now()))


async def store(
    session: AsyncSession, held: Claim, *, status: int, headers: dict[str, Any], body_encrypted: bytes
) -> None:
    """Keep the first answer."""
    await session.execute(
        update(IdempotencyKey)
        .where(*_unanswered(held))
        .values(status=status, headers=headers, body_encrypted=body_encrypted, created_at=func.now())
    )


async def release(session: AsyncSession, held: Claim) -> None:
    """Give the key back without an answer: the next request with it is a first one."""
    await session.execute(delete(IdempotencyKey).where(*_unanswered(held)))


def _unanswered(held: Claim) -> tuple[Any, ...]:
    return (
        IdempotencyKey.owner == held.owner,
        IdempotencyKey.key == held.key,
        IdempotencyKey.request_hash == held.request_hash,
        IdempotencyKey.status.is_(None),
    )
