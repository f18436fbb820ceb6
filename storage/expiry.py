"""What expires by itself: credentials out of date, counted failures, idempotent answers, calls nobody will settle."""

from datetime import timedelta
from typing import Final

from sqlalchemy import ColumnElement, delete, func, text
from sqlalchemy.ext.asyncio import AsyncSession

from storage import model_ledger
from storage.tables import IdempotencyKey, Lease, LoginFailure, Operation, PreviewToken, RefreshToken, Table, Ticket

_KEEP_SPENT = timedelta(days=14)
"""A spent refresh token is kept as long as it could have lived: its reuse must be told from an unknown one."""
_KEEP_OPERATIONS = timedelta(days=30)


# What was streamed of a task stands in its steps and calls; who reconnects so late is told those.
_PRUNE_STREAMED: Final = text("""
DELETE FROM events USING (
    SELECT events.project_id, events.seq FROM agent_tasks JOIN events ON events.task_id = agent_tasks.id
    WHERE agent_tasks.ended_at < now() - interval '1 day' AND agent_tasks.ended_at > now() - interval '8 days'
      AND events.type IN ('text.delta', 'tool.output')
    LIMIT 20000
) AS old WHERE events.project_id = old.project_id AND events.seq = old.seq
""")


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
    count: int = await model_ledger.settle_forgotten(session)
    for table, condition in expired:
        result = await session.execute(delete(table).where(condition))
        count += result.rowcount  # type: ignore[attr-defined]  # a DELETE's result is a CursorResult
    pruned = await session.execute(_PRUNE_STREAMED)
    count += pruned.rowcount  # type: ignore[attr-defined]  # as above
    return count
