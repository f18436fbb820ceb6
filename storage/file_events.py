"""What the log has said of files already: so that nobody tells again what was told."""

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

_TOLD = text(
    """
    WITH last AS (
        SELECT DISTINCT ON (place.path) place.path, newest.op
        FROM unnest(CAST(:inside AS text[]), CAST(:places AS text[])) AS place (path, name)
        CROSS JOIN LATERAL (
            SELECT seq, data->>'op' AS op FROM events
            WHERE project_id = :project_id AND type = 'file.changed' AND data->>'path' = place.name
            ORDER BY seq DESC LIMIT 1
        ) AS newest
        WHERE place.name = place.path OR newest.op = 'deleted'
        ORDER BY place.path, newest.seq DESC
    )
    SELECT path, last.op, EXISTS (
        SELECT FROM events
        WHERE project_id = :project_id AND type = 'file.changed' AND data->>'path' = path AND data->>'etag' = etag
    ) AS told
    FROM unnest(CAST(:paths AS text[]), CAST(:etags AS text[])) AS change (path, etag) LEFT JOIN last USING (path)
    """
)

Op = Literal["created", "modified", "deleted"]


@dataclass(frozen=True)
class SeenChange:
    """A change as it was found: several of one file in short order are one. `etag`: None after a deletion."""

    path: str
    op: Op
    etag: str | None


async def untold(session: AsyncSession, project_id: int, changes: list[SeenChange]) -> list[SeenChange]:
    """Those of the changes that the log hasn't, in the log's words: what it has seen created was modified since.

    A version of a file is known by its etag, told last or before; a deletion by being the last that was told, of the
    file or of a folder that it is in.
    """
    places = [(change.path, place) for change in changes for place in _places(change.path)]
    values = {
        "project_id": project_id,
        "paths": [change.path for change in changes],
        "etags": [change.etag for change in changes],
        "inside": [path for path, _ in places],
        "places": [place for _, place in places],
    }
    known = {path: (last_op, told) for path, last_op, told in await session.execute(_TOLD, values)}
    news = []
    for change in changes:
        last_op, told = known[change.path]
        if not told and not change.op == last_op == "deleted":
            news.append(SeenChange(change.path, _in_the_logs_words(change.op, last_op), change.etag))
    return news


def _places(path: str) -> list[str]:
    """The path and those of the folders around it."""
    parts = path.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]


def _in_the_logs_words(op: Op, last_op: str | None) -> Op:
    if op == "created" and last_op in {"created", "modified"}:
        return "modified"
    if op == "modified" and last_op == "deleted":
        return "created"
    return op
