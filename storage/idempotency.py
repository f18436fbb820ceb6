"""First answers to POSTs, kept for a day: one row per owner and key, claimed by one statement.

An attempt may die between its commit and its answer. So what it makes is noted on the row in the transaction that
makes it (`note_made`), stays there when the key is given back or taken over, and is found by the next attempt
(`made`), which answers with it instead of making it again.

storage/expiry.py deletes the expired rows; until then they count as not there.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import and_, case, delete, func, null, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from storage.tables import IdempotencyKey
from workflows.contracts.errors import ConflictError

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


class InProgressError(ConflictError):
    """Another request with the key is being worked on."""

    retryable = True

    def __init__(self) -> None:
        super().__init__("The first request with this key is still being worked on.", code="idempotency_in_progress")


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
    still_made = case((expired, null()), else_=IdempotencyKey.made)
    statement = statement.on_conflict_do_update(
        index_elements=[IdempotencyKey.owner, IdempotencyKey.key],
        set_={
            "request_hash": wanted.request_hash,
            "status": None,
            "headers": None,
            "body_encrypted": None,
            "made": still_made,
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
    """Give the key back without an answer: the next request with it is a first one.

    One that has made something leaves its row behind, to be taken over at once by the same request.
    """
    await session.execute(delete(IdempotencyKey).where(*_unanswered(held), IdempotencyKey.made.is_(None)))
    await session.execute(update(IdempotencyKey).where(*_unanswered(held)).values(created_at=func.now() - ABANDONED))


async def made(session: AsyncSession, held: Claim | None) -> str | None:
    """Id of what an earlier attempt of this request has made, or None: then make it, and `note_made`.

    To be asked first in the transaction that makes it: the claim's row stays locked until that ends, so that an attempt
    which was thought dead and the one that took over take turns. Raises `InProgressError` when the key has been
    answered or given back meanwhile. Without a claim None: no key was sent.
    """
    if held is None:
        return None
    statement = select(IdempotencyKey).where(*_unanswered(held)).with_for_update()
    row = await session.scalar(statement.execution_options(populate_existing=True))
    if row is None:
        raise InProgressError
    return row.made


async def note_made(session: AsyncSession, held: Claim | None, made_id: str) -> None:
    """Say in the transaction that makes it what this request has made. Without a claim there is nobody to tell."""
    if held is not None:
        await session.execute(update(IdempotencyKey).where(*_unanswered(held)).values(made=made_id))


def _unanswered(held: Claim) -> tuple[Any, ...]:
    return (
        IdempotencyKey.owner == held.owner,
        IdempotencyKey.key == held.key,
        IdempotencyKey.request_hash == held.request_hash,
        IdempotencyKey.status.is_(None),
    )
