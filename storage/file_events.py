"""What the log last said of a file: so that a watcher doesn't tell again what the API has told already."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

_LAST = text(
    """
    SELECT path, (
        SELECT data->>'etag' FROM events
        WHERE project_id = :project_id AND type = 'file.changed' AND data->>'path' = path
        ORDER BY seq DESC LIMIT 1
    ) AS etag
    FROM unnest(CAST(:paths AS text[])) AS path
    """
)


async def last_etags(session: AsyncSession, project_id: int, paths: list[str]) -> dict[str, str | None]:
    """The etag of each path's newest `file.changed` event; None for a deletion, and for a path never told of."""
    rows = await session.execute(_LAST, {"project_id": project_id, "paths": paths})
    return dict(rows.tuples().all())
