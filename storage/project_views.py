"""What clients see of a project, in one statement: its row, its dev server's, and the leases in force."""

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final

import asyncpg
from sqlalchemy import BigInteger, ColumnElement, Select, bindparam, func, or_, select
from sqlalchemy.dialects.postgresql import JSONB, aggregate_order_by

from storage.credentials import VIEWER_IS_PROVEN, Viewer
from storage.dev_servers import DevServerRecord
from storage.engine import Database
from storage.leases import LeaseRecord
from storage.projects import ProjectRecord
from storage.statements import Statement
from storage.tables import DevServerRow, Lease, Project

_BEHIND_ALL: Final = 2**63 - 1
"""Above every id: where the first page begins."""


@dataclass(frozen=True)
class ProjectView:
    """A project, its dev server, and who keeps that awake."""

    project: ProjectRecord
    server: DevServerRecord
    leases: list[LeaseRecord]


_PROJECT: Final = [getattr(Project, field.name) for field in fields(ProjectRecord)]
_SERVER: Final = [getattr(DevServerRow, field.name) for field in fields(DevServerRecord)]
_LEASES: Final = (
    select(
        func.jsonb_agg(
            aggregate_order_by(
                func.jsonb_build_array(Lease.kind, Lease.holder, Lease.expires_at), Lease.kind, Lease.holder
            ),
            type_=JSONB,
        )
    )
    .where(Lease.project_id == Project.id, or_(Lease.expires_at.is_(None), Lease.expires_at > func.now()))
    .correlate(Project)
    .scalar_subquery()
)


def _select(*conditions: ColumnElement[bool]) -> Select[Any]:
    return (
        select(*_PROJECT, *_SERVER, _LEASES)
        .select_from(Project)
        .join(DevServerRow, DevServerRow.project_id == Project.id)
        .where(Project.user_id == bindparam("user_id"), *conditions)
    )


_ONE: Final = Statement(_select(Project.id == bindparam("project_id"), VIEWER_IS_PROVEN))
_PAGE: Final = Statement(
    _select(Project.id < bindparam("after"), VIEWER_IS_PROVEN)
    .order_by(Project.id.desc())
    .limit(bindparam("limit", type_=BigInteger))
)


async def get(database: Database, project_id: int, viewer: Viewer) -> ProjectView | None:
    """The viewer's project, or None: missing, somebody else's, and asked by a session that has ended, alike."""
    rows = await database.fetch(_ONE, project_id=project_id, user_id=viewer.user_id, family=viewer.family)
    return _view(rows[0]) if rows else None


async def page(database: Database, viewer: Viewer, *, after: int | None, limit: int) -> list[ProjectView]:
    """The viewer's projects, newest first, at most `limit`, those with an id below `after`.

    None also when the session that asks has ended.
    """
    rows = await database.fetch(
        _PAGE,
        user_id=viewer.user_id,
        family=viewer.family,
        after=_BEHIND_ALL if after is None else after,
        limit=limit,
    )
    return [_view(row) for row in rows]


def _view(row: asyncpg.Record) -> ProjectView:
    split = len(_PROJECT)
    return ProjectView(
        ProjectRecord(*row[:split]),
        DevServerRecord(*row[split:-1]),
        [
            LeaseRecord(kind, holder, None if expires_at is None else datetime.fromisoformat(expires_at))
            for kind, holder, expires_at in row[-1] or []
        ],
    )
