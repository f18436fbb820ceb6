"""What the log has said of files already: so that a watcher doesn't tell again what the API has told."""

from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

_TOLD = text(
    """
    SELECT path, last_op, EXISTS (
        SELECT FROM events
        WHERE project_id = :project_id AND type = 'file.changed' AND data->>'path' = path AND (
            data->>'etag' = etag
            OR etag IS NULL AND data->>'op' = 'deleted' AND at > now() - make_interval(secs => :lately_s)
        )
    ) AS told
    FROM unnest(CAST(:paths AS text[]), CAST(:etags AS text[])) AS change (path, etag)
    LEFT JOIN LATERAL (
        SELECT data->>'op' AS last_op FROM events
        WHERE project_id = :project_id AND type = 'file.changed' AND data->>'path' = path
        ORDER BY seq DESC LIMIT 1
    ) AS last ON true
    """
)

_LATELY_S: Final = 2.0
"""A watcher tells of a deletion within this time; the file may be there again by then."""

Op = Literal["created", "modified", "deleted"]


@dataclass(frozen=True)
class SeenChange:
    """A change as a watcher sees it: several of one file in short order are one. `etag`: None after a deletion."""

    path: str
    op: Op
    etag: str | None


async def untold(session: AsyncSession, project_id: int, changes: list[SeenChange]) -> list[SeenChange]:
    """Those of the changes that the log hasn't, in the log's words: what it has seen created was modified since.

    A version of a file is known by its etag, told last or before; a deletion by being the last that was told, or by
    having been told just now.
    """
    values = {
        "project_id": project_id,
        "lately_s": _LATELY_S,
        "paths": [change.path for change in changes],
        "etags": [change.etag for change in changes],
    }
    known = {path: (last_op, told) for path, last_op, told in await session.execute(_TOLD, values)}
    news = []
    for change in changes:
        last_op, told = known[change.path]
        if not told and not change.op == last_op == "deleted":
            news.append(SeenChange(change.path, _in_the_logs_words(change.op, last_op), change.etag))
    return news


def _in_the_logs_words(op: Op, last_op: str | None) -> Op:
    if op == "created" and last_op in {"created", "modified"}:
        return "modified"
    if op == "modified" and last_op == "deleted":
        return "created"
    return op
