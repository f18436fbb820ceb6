"""What clients see of a project, in one statement: its row, its dev server's, and the leases in force."""

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, func, or_, select
from sqlalchemy.dialects.postgresql import JSONB, aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncSession

from storage.dev_servers import DevServerRecord
from storage.leases import LeaseRecord
from storage.projects import ProjectRecord
from storage.tables import DevServerRow, Lease, Project


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
        .where(*conditions)
    )


async def get(session: AsyncSession, project_id: int, *, user_id: int) -> ProjectView | None:
    """The user's project, or None: missing and somebody else's alike."""
    row = (await session.execute(_select(Project.id == project_id, Project.user_id == user_id))).first()
    return None if row is None else _view(row)


async def page(session: AsyncSession, user_id: int, *, after: int | None, limit: int) -> list[ProjectView]:
    """The user's projects, newest first, at most `limit`, those with an id below `after`."""
    query = _select(Project.user_id == user_id).order_by(Project.id.desc()).limit(limit)
    if after is not None:
        query = query.where(Project.id < after)
    return [_view(row) for row in await session.execute(query)]


def _view(row: Row[Any]) -> ProjectView:
    split = len(_PROJECT)
    return ProjectView(
        ProjectRecord(*row[:split]),
        DevServerRecord(*row[split:-1]),
        [
            LeaseRecord(kind, holder, None if expires_at is None else datetime.fromisoformat(expires_at))
            for kind, holder, expires_at in row[-1] or []
        ],
    )
