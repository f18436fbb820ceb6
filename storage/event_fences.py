"""Who may write on a subject of a task: the attempt that has claimed it last.

A worker that was thought dead may go on for a while beside its successor. What it still says of a step or a tool call
is dropped: claims and fenced writes both hold the log's row, so they come one after the other.
"""

import secrets
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import bindparam, delete, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from storage.tables import EventFenceRow
from workflows.contracts.events import EventFence

_LOCK: Final = text("""
SELECT project_id FROM event_logs WHERE project_id = ANY(CAST(:ids AS bigint[]))
ORDER BY project_id FOR NO KEY UPDATE
""")
# A token's first 13 characters are its moment, as text that sorts.
_CLAIM: Final = text("""
WITH log AS MATERIALIZED (SELECT 1 FROM event_logs WHERE project_id = :project_id FOR NO KEY UPDATE)
INSERT INTO event_fences (task_id, subject, token)
SELECT CAST(:task_id AS uuid), CAST(:subject AS text), CAST(:token AS uuid) FROM log
ON CONFLICT (task_id, subject) DO UPDATE SET token = excluded.token
WHERE left(CAST(event_fences.token AS text), 13) <= left(CAST(excluded.token AS text), 13)
RETURNING xmax = 0
""")


class FencedOffError(Exception):
    """Another attempt has claimed the subject, or its task has ended: this one has nothing more to say."""

    def __init__(self) -> None:
        super().__init__("Another attempt has taken over.")


async def claim(
    session: AsyncSession, project_id: int, task_id: UUID, subject: str, *, since: datetime
) -> tuple[EventFence, bool]:
    """Take the subject; the second item is False when an earlier attempt had it. The project's row must be locked.

    `since`: when this attempt was scheduled. Raises `FencedOffError` when one that was scheduled later has the subject:
    a worker that thaws begins what was sent to it while it was frozen, and others have done since. Locks the log.
    """
    token = _token(since)
    values = {"project_id": project_id, "task_id": task_id, "subject": subject, "token": token}
    is_first = await session.scalar(_CLAIM, values)
    if is_first is None:
        raise FencedOffError
    return EventFence(subject=subject, token=str(token)), bool(is_first)


def _token(since: datetime) -> UUID:
    """Begins with that moment, in milliseconds, and is nobody else's."""
    return UUID(int=int(since.timestamp() * 1000) << 80 | secrets.randbits(80))


_TOKEN: Final = select(EventFenceRow.token).where(
    EventFenceRow.task_id == bindparam("task_id"), EventFenceRow.subject == bindparam("subject")
)


async def stands(session: AsyncSession, task_id: UUID, fence: EventFence) -> bool:
    """Whether the claim is still the last one. The project's row must be locked."""
    token = await session.scalar(_TOKEN, {"task_id": task_id, "subject": fence.subject})
    return str(token) == fence.token


async def lift(session: AsyncSession, project_id: int, task_id: UUID) -> None:
    """End all claims on the task's subjects: what isn't in the log by now never will be. Locks the log."""
    await session.execute(_LOCK, {"ids": [project_id]})
    await session.execute(delete(EventFenceRow).where(EventFenceRow.task_id == task_id))
