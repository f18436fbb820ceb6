"""Projects: rows, and every change of state together with its event, in the caller's one transaction."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from storage import event_log
from storage.tables import DevServerRow, Project, User
from workflows.contracts.errors import ConflictError
from workflows.contracts.events import EventType, NewEvent
from workflows.contracts.names import ProjectRef
from workflows.contracts.projects import ProjectState

_FROM: Final = {
    ProjectState.PROVISIONING: {ProjectState.PROVISIONING},
    ProjectState.READY: {ProjectState.PROVISIONING, ProjectState.READY},
    ProjectState.FAILED: {ProjectState.PROVISIONING, ProjectState.FAILED},
    ProjectState.DELETING: {ProjectState.PROVISIONING, ProjectState.READY, ProjectState.FAILED},
}
"""From which states each may be reached: what a worker that was thought dead says late changes nothing."""


# Made once: building a statement and its cache key costs more than running it, and every event begins with this one.
_LOCK: Final = select(Project).where(Project.id == bindparam("project_id")).with_for_update(key_share=True)


@dataclass(frozen=True)
class ProjectRecord:
    """A project as stored. One of `template`, `git_url`, `source_project_id` says where its files came from."""

    id: int
    user_id: int
    name: str
    description: str
    template: str | None
    git_url: str | None
    git_ref: str | None
    source_project_id: int | None
    state: str
    state_reason: str | None
    created_at: datetime
    updated_at: datetime

    @property
    def ref(self) -> ProjectRef:
        """The pair from which names follow."""
        return ProjectRef(self.user_id, self.id)


@dataclass(frozen=True)
class NewProject:
    """What a new project is made from."""

    user_id: int
    name: str
    description: str = ""
    template: str | None = None
    git_url: str | None = None
    git_ref: str | None = None
    source_project_id: int | None = None


def _record(row: Project) -> ProjectRecord:
    return ProjectRecord(**{field: getattr(row, field) for field in ProjectRecord.__dataclass_fields__})


async def create(session: AsyncSession, new: NewProject, *, limit: int) -> ProjectRecord:
    """Write the row, its dev server's and its first event. Raises `ConflictError` `project_limit` at `limit`.

    The user's row is locked meanwhile, so that two creations at once can't pass the limit together.
    """
    await session.execute(select(User.id).where(User.id == new.user_id).with_for_update(key_share=True))
    count = await session.scalar(select(func.count()).select_from(Project).where(Project.user_id == new.user_id))
    if (count or 0) >= limit:
        raise ConflictError(f"You have {count} projects, the limit; delete one first.", code="project_limit")
    row = Project(
        user_id=new.user_id,
        name=new.name,
        description=new.description,
        template=new.template,
        git_url=new.git_url,
        git_ref=new.git_ref,
        source_project_id=new.source_project_id,
        state=ProjectState.PROVISIONING,
    )
    session.add(row)
    await session.flush()
    session.add(DevServerRow(project_id=row.id))
    await event_log.begin(session, row.id)
    event_log.append(session, [_state_event(row.id, ProjectState.PROVISIONING, None, None)])
    await session.refresh(row)
    return _record(row)


async def get(session: AsyncSession, project_id: int) -> ProjectRecord | None:
    """The project, whoever's it is, or None."""
    row = await session.get(Project, project_id, populate_existing=True)
    return None if row is None else _record(row)


async def lock(session: AsyncSession, project_id: int) -> ProjectRecord | None:
    """The project, locked until the transaction ends, or None: changes of its state take turns."""
    row = await session.scalar(_LOCK, {"project_id": project_id}, execution_options={"populate_existing": True})
    return None if row is None else _record(row)


async def rename(
    session: AsyncSession, project_id: int, *, name: str | None, description: str | None
) -> ProjectRecord | None:
    """Change what is given. None when the project is gone."""
    row = await session.get(Project, project_id, with_for_update={"key_share": True}, populate_existing=True)
    if row is None:
        return None
    if name is not None:
        row.name = name
    if description is not None:
        row.description = description
    await session.flush()
    await session.refresh(row)
    return _record(row)


async def set_state(
    session: AsyncSession, project_id: int, state: ProjectState, *, reason: str | None = None, stage: str | None = None
) -> bool:
    """Change the state and tell it. False, and nothing done, when the project is gone or `state` can't follow its own.

    A `stage` alone (the state stays) is told as well: that is how a provision shows its progress. The same again,
    without a stage, is told once.
    """
    row = await session.get(Project, project_id, with_for_update={"key_share": True}, populate_existing=True)
    if row is None or row.state not in _FROM[state]:
        return False
    if (row.state, row.state_reason) != (state, reason) or stage is not None:
        row.state, row.state_reason = state, reason
        await session.flush()
        event_log.append(session, [_state_event(project_id, state, reason, stage)])
    return True


async def delete(session: AsyncSession, project_id: int) -> None:
    """Remove the row and all that hangs on it, and end the streams of its log; gone already is success."""
    # The project before its log, as every writer; deleting it at once would lock out those who hold the log's row.
    row = await session.get(Project, project_id, with_for_update={"key_share": True})
    if row is not None:
        await event_log.end(session, project_id)
        await session.delete(row)


async def ids_of(session: AsyncSession, user_id: int, *, limit: int) -> list[int]:
    """The user's projects, whatever their state, oldest first."""
    query = select(Project.id).where(Project.user_id == user_id).order_by(Project.id).limit(limit)
    return list(await session.scalars(query))


async def in_state(
    session: AsyncSession, state: ProjectState, *, older_than_s: float, limit: int
) -> list[ProjectRecord]:
    """Projects that have been in `state` for longer than `older_than_s`, at most `limit`, oldest first."""
    rows = await session.scalars(
        select(Project)
        .where(Project.state == state, Project.updated_at < func.now() - timedelta(seconds=older_than_s))
        .order_by(Project.updated_at)
        .limit(limit)
    )
    return [_record(row) for row in rows]


def _state_event(project_id: int, state: str, reason: str | None, stage: str | None) -> NewEvent:
    data = {"state": state, "reason": reason, "stage": stage}
    return NewEvent(project_id=project_id, type=EventType.PROJECT_STATE, data=data)
