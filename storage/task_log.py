"""Where a task's and a chat's events are in their project's log."""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from storage.tables import AgentTaskRow
from workflows.contracts.agent_tasks import FINAL_STATES
from workflows.contracts.events import EventType

MAX_TASKS: Final = 10_000
"""Of a chat with more only the newest are followed."""

_EXTENT: Final = text("""
SELECT last_seq, (
    SELECT min(seq) FROM events
    WHERE task_id = CAST(:task_id AS uuid) AND type = :type AND data->>'state' = ANY(CAST(:final AS text[]))
) AS final_seq
FROM event_logs WHERE project_id = :project_id
""")
_TOLD_TEXTS: Final = text("""
WITH resets AS MATERIALIZED (
    SELECT data->>'step' AS step, max(seq) AS seq FROM events
    WHERE task_id = :task_id AND type = 'step.reset' AND seq <= :upto GROUP BY 1
)
SELECT CAST(data->>'step' AS int) AS n, string_agg(data->>'text', '' ORDER BY events.seq) AS text
FROM events LEFT JOIN resets ON resets.step = data->>'step'
WHERE task_id = :task_id AND type = 'text.delta' AND events.seq <= :upto AND events.seq > coalesce(resets.seq, 0)
GROUP BY 1
""")


@dataclass(frozen=True)
class TaskExtent:
    """How far the project's log goes, and the number of the task's final event, None before it has ended."""

    last_seq: int
    final_seq: int | None


async def extent(session: AsyncSession, project_id: int, task_id: UUID | None = None) -> TaskExtent | None:
    """The extent of a task's events, or None when the project is gone; of the log alone without a task."""
    values = {
        "project_id": project_id,
        "task_id": task_id,
        "type": EventType.TASK_STATE,
        "final": sorted(FINAL_STATES),
    }
    row = (await session.execute(_EXTENT, values)).one_or_none()
    return None if row is None else TaskExtent(row.last_seq, row.final_seq)


async def task_ids(session: AsyncSession, chat_id: UUID) -> set[str]:
    """The chat's tasks, as events name them."""
    query = select(AgentTaskRow.id).where(AgentTaskRow.chat_id == chat_id).order_by(AgentTaskRow.id.desc())
    return {str(task_id) for task_id in await session.scalars(query.limit(MAX_TASKS))}


async def told_texts(session: AsyncSession, task_id: UUID, *, upto: int) -> dict[int, str]:
    """What each step's watchers have been told of its text by event `upto`, without what a retry has dropped."""
    rows = await session.execute(_TOLD_TEXTS, {"task_id": task_id, "upto": upto})
    return {row.n: row.text for row in rows}
