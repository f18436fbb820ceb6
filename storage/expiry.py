"""What expires by itself: credentials out of date, counted failures, idempotent answers, calls nobody will settle."""

from datetime import timedelta

from sqlalchemy import ColumnElement, delete, func
from sqlalchemy.ext.asyncio import AsyncSession

from storage import model_ledger
from storage.tables import IdempotencyKey, Lease, LoginFailure, Operation, PreviewToken, RefreshToken, Table, Ticket

_KEEP_SPENT = timedelta(days=14)
"""A spent refresh token is kept as long as it could have lived: its reuse must be told from an unknown one."""
_KEEP_OPERATIONS = timedelta(days=30)


async def prune(session: AsyncSession) -> int:
    """Delete what has expired, and settle model calls whose makers died; returns how many rows."""
    now = func.now()
    expired: list[tuple[type[Table], ColumnElement[bool]]] = [
        (RefreshToken, RefreshToken.expires_at < now - _KEEP_SPENT),
        (Ticket, Ticket.expires_at < now),
        (PreviewToken, PreviewToken.expires_at < now),
        (Lease, Lease.expires_at < now),
        (LoginFailure, LoginFailure.at < now - timedelta(hours=1)),
        (IdempotencyKey, IdempotencyKey.created_at < now - timedelta(hours=24)),
        (Operation, Operation.ended_at < now - _KEEP_OPERATIONS),
    ]
    count = await model_ledger.settle_forgotten(session)
    for table, condition in expired:
        result = await session.execute(delete(table).where(condition))
        count += result.rowcount  # type: ignore[attr-defined]  # a DELETE's result is a CursorResult
    return count
