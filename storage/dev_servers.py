"""Dev servers: the accepted commands in their order, and what has become of them.

The generation is raised under the row's lock, so "the last accepted command" is a fact of the database.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from storage import event_log, leases, operations
from storage.tables import DevServerRow, Project
from workflows.contracts.dev_servers import DevServerAction, DevServerCommand, DevServerState, StateChange
from workflows.contracts.events import EventType, NewEvent
from workflows.contracts.names import ProjectRef
from workflows.contracts.projects import ProjectState

_AT_ONCE: Final[dict[tuple[str, str], DevServerState]] = {
    (DevServerAction.START, DevServerState.STOPPED): DevServerState.STARTING,
    (DevServerAction.START, DevServerState.FAILED): DevServerState.STARTING,
    (DevServerAction.START, DevServerState.STOPPING): DevServerState.STARTING,
    (DevServerAction.STOP, DevServerState.RUNNING): DevServerState.STOPPING,
    (DevServerAction.STOP, DevServerState.STARTING): DevServerState.STOPPING,
    (DevServerAction.RESTART, DevServerState.STOPPED): DevServerState.STARTING,
    (DevServerAction.RESTART, DevServerState.FAILED): DevServerState.STARTING,
    (DevServerAction.RESTART, DevServerState.STOPPING): DevServerState.STARTING,
    (DevServerAction.RESTART, DevServerState.RUNNING): DevServerState.STARTING,
}
"""The state that a command shows from the moment it is accepted, by the state that it finds."""


@dataclass(frozen=True)
class DevServerRecord:
    """A project's dev server as stored. A generation above `observed_generation` waits for its workflow."""

    project_id: int
    state: str
    reason: str | None
    exit_code: int | None
    log_tail: str | None
    since: datetime
    last_activity_at: datetime | None
    action: str | None
    generation: int
    observed_generation: int


@dataclass(frozen=True)
class StandingCommand:
    """A project's newest command, to be sent (again) to its workflow."""

    ref: ProjectRef
    command: DevServerCommand


def _record(row: DevServerRow) -> DevServerRecord:
    return DevServerRecord(**{field: getattr(row, field) for field in DevServerRecord.__dataclass_fields__})


async def get(session: AsyncSession, project_id: int) -> DevServerRecord | None:
    """The project's dev server, or None when the project is gone."""
    row = await session.get(DevServerRow, project_id, populate_existing=True)
    return None if row is None else _record(row)


async def accept(session: AsyncSession, project_id: int, action: DevServerAction) -> DevServerCommand:
    """Take a command: raise the generation, show at once what it means. The project's row must be locked."""
    row = await session.get(DevServerRow, project_id, with_for_update={"key_share": True}, populate_existing=True)
    if row is None:
        raise LookupError(f"project {project_id} has no dev server row")
    row.generation += 1
    row.action = action
    row.commanded_at = func.now()
    state = _AT_ONCE.get((action, row.state))
    if state is not None:
        _enter(session, row, state)
    await session.flush()
    return DevServerCommand(generation=row.generation, action=action)


async def record(session: AsyncSession, change: StateChange, log_tail: str | None = None) -> bool:
    """Write a transition: row, event and ended operations. False, nothing written, when it was superseded.

    Writing the same transition again changes nothing and tells nothing twice.
    """
    step = change.step
    await _lock_project(session, step.project_id)
    row = await session.get(DevServerRow, step.project_id, with_for_update={"key_share": True}, populate_existing=True)
    if row is None or row.generation > step.generation:
        return False
    row.observed_generation = max(row.observed_generation, step.generation)
    new = (change.state, change.reason, change.exit_code, log_tail)
    if (row.state, row.reason, row.exit_code, row.log_tail) != new:
        _enter(session, row, *new)
    await _end_operations(session, change)
    await session.flush()
    return True


async def _end_operations(session: AsyncSession, change: StateChange) -> None:
    project_id, generation = change.step.project_id, change.step.generation
    match change.state:
        case DevServerState.RUNNING:
            await operations.finish_starts(session, project_id, generation)
        case DevServerState.STOPPED:
            await operations.finish_stops(session, project_id, generation)
            await leases.release_all(session, project_id)
        case DevServerState.FAILED:
            error = {"code": change.code or "failed", "detail": change.reason or "", "retryable": False}
            await operations.finish_starts(session, project_id, generation, error)
            await leases.release_all(session, project_id)
        case _:
            pass


async def set_stage(session: AsyncSession, project_id: int, generation: int, stage: str) -> bool:
    """Tell the progress of the start that was begun for `generation`; starts accepted since are served by it, too.

    False when the log tells it already, or the start is superseded, or the server isn't starting any more.
    """
    await _lock_project(session, project_id)
    row = await session.get(DevServerRow, project_id, populate_existing=True)
    if row is None or row.state != DevServerState.STARTING:
        return False
    if row.generation > generation and row.action != DevServerAction.START:
        return False
    await operations.set_dev_server_stage(session, project_id, row.generation, stage)
    if row.stage == stage:
        return False
    row.stage = stage
    event = NewEvent(project_id=project_id, type=EventType.DEV_SERVER_STAGE, data={"stage": stage})
    event_log.append(session, [event])
    return True


async def unobserved(session: AsyncSession, *, older_than_s: float, limit: int) -> list[StandingCommand]:
    """Commands that no workflow has heard of for `older_than_s`: their signal is to be sent again."""
    rows = await session.execute(
        select(Project.user_id, Project.id, DevServerRow.generation, DevServerRow.action)
        .join(Project, Project.id == DevServerRow.project_id)
        .where(
            DevServerRow.generation > DevServerRow.observed_generation,
            DevServerRow.commanded_at < func.now() - timedelta(seconds=older_than_s),
            Project.state != ProjectState.DELETING,
        )
        .order_by(DevServerRow.commanded_at)
        .limit(limit)
    )
    return [
        StandingCommand(ProjectRef(user_id, project_id), DevServerCommand(generation=generation, action=action))
        for user_id, project_id, generation, action in rows
    ]


async def in_motion(session: AsyncSession, *, older_than_s: float, limit: int) -> list[StandingCommand]:
    """Servers whose row has said for `older_than_s` that a workflow lives for them, with their newest command."""
    moving = [DevServerState.STARTING, DevServerState.RUNNING, DevServerState.STOPPING]
    rows = await session.execute(
        select(Project.user_id, Project.id, DevServerRow.generation, DevServerRow.action)
        .join(Project, Project.id == DevServerRow.project_id)
        .where(
            DevServerRow.state.in_(moving),
            DevServerRow.since < func.now() - timedelta(seconds=older_than_s),
            Project.state != ProjectState.DELETING,
        )
        .order_by(Project.id)
        .limit(limit)
    )
    return [
        StandingCommand(ProjectRef(user_id, project_id), DevServerCommand(generation=generation, action=action))
        for user_id, project_id, generation, action in rows
        if action is not None
    ]


async def _lock_project(session: AsyncSession, project_id: int) -> None:
    """Every writer locks the project's row first: the event log does too, and two orders would deadlock."""
    await session.execute(select(Project.id).where(Project.id == project_id).with_for_update(key_share=True))


def _enter(
    session: AsyncSession,
    row: DevServerRow,
    state: DevServerState,
    reason: str | None = None,
    exit_code: int | None = None,
    log_tail: str | None = None,
) -> None:
    """Write the state with all that belongs to it, and tell of it."""
    if row.state != state:
        row.since = func.now()
    row.state, row.reason, row.exit_code, row.log_tail, row.stage = state, reason, exit_code, log_tail, None
    data = {"state": state, "reason": reason, "exit_code": exit_code, "log_tail": log_tail}
    event_log.append(session, [NewEvent(project_id=row.project_id, type=EventType.DEV_SERVER_STATE, data=data)])
