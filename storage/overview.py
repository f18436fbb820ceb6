"""What operators read across all users."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from storage.tables import DevServerRow, Project


@dataclass(frozen=True)
class ProjectOverview:
    """A project with its dev server. `generation` over `observed_generation`: a command that nobody has heard yet."""

    project_id: int
    user_id: int
    name: str
    state: str
    state_reason: str | None
    created_at: datetime
    dev_server_state: str
    dev_server_reason: str | None
    dev_server_since: datetime
    last_activity_at: datetime | None
    generation: int
    observed_generation: int


async def page(
    session: AsyncSession,
    *,
    after: int,
    limit: int,
    user_id: int | None = None,
    dev_server_state: str | None = None,
) -> list[ProjectOverview]:
    """Projects by id, those above `after`."""
    statement = (
        select(
            Project.id.label("project_id"),
            Project.user_id,
            Project.name,
            Project.state,
            Project.state_reason,
            Project.created_at,
            DevServerRow.state.label("dev_server_state"),
            DevServerRow.reason.label("dev_server_reason"),
            DevServerRow.since.label("dev_server_since"),
            DevServerRow.last_activity_at,
            DevServerRow.generation,
            DevServerRow.observed_generation,
        )
        .join(DevServerRow, DevServerRow.project_id == Project.id)
        .where(Project.id > after)
        .order_by(Project.id)
        .limit(limit)
    )
    if user_id is not None:
        statement = statement.where(Project.user_id == user_id)
    if dev_server_state is not None:
        statement = statement.where(DevServerRow.state == dev_server_state)
    return [ProjectOverview(**row) for row in (await session.execute(statement)).mappings()]
