"""Operations: the durable handle of work that a POST began. An ended one never changes again."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from uuid6 import uuid7

from storage.tables import Operation
from workflows.contracts.operations import OperationKind, OperationState

CHANNEL: Final = "operations"
"""Postgres channel that tells an operation's id when it has changed."""

_STARTING = (OperationKind.START_DEV_SERVER, OperationKind.RESTART_DEV_SERVER)
_STOPPING = (OperationKind.STOP_DEV_SERVER,)
SUPERSEDED: Final = "superseded"


@dataclass(frozen=True)
class OperationRecord:
    """One operation, as `GET /api/operations/{id}` shows it. `error`: `{code, detail, retryable}`."""

    id: UUID
    user_id: int
    project_id: int
    kind: str
    state: str
    stage: str | None
    generation: int | None
    error: dict[str, Any] | None
    started_at: datetime
    ended_at: datetime | None


def _record(row: Operation) -> OperationRecord:
    return OperationRecord(**{field: getattr(row, field) for field in OperationRecord.__dataclass_fields__})


async def create(
    session: AsyncSession, *, user_id: int, project_id: int, kind: OperationKind, generation: int | None = None
) -> OperationRecord:
    """Write down that the work has begun."""
    row = Operation(id=UUID(str(uuid7())), user_id=user_id, project_id=project_id, kind=kind, generation=generation)
    session.add(row)
    await session.flush()
    await session.refresh(row)
    return _record(row)


async def get(session: AsyncSession, operation_id: UUID, *, user_id: int) -> OperationRecord | None:
    """The user's operation, or None."""
    row = await session.get(Operation, operation_id, populate_existing=True)
    return _record(row) if row is not None and row.user_id == user_id else None


async def running(session: AsyncSession, project_id: int, kind: OperationKind) -> OperationRecord | None:
    """The project's newest unended operation of a kind, or None."""
    rows = await session.scalars(
        select(Operation)
        .where(Operation.project_id == project_id, Operation.kind == kind, Operation.state == OperationState.RUNNING)
        .order_by(Operation.id.desc())
        .limit(1)
    )
    row = rows.first()
    return None if row is None else _record(row)


async def set_stage(session: AsyncSession, operation_id: UUID, stage: str) -> bool:
    """Tell how far it is. False, and nothing told, when that is known or the operation has ended."""
    news = Operation.stage.is_distinct_from(stage)
    return await _change(session, (Operation.id == operation_id) & news, stage=stage)


async def finish(session: AsyncSession, operation_id: UUID, error: dict[str, Any] | None = None) -> None:
    """End it: succeeded without an `error`, else failed."""
    await _end(session, Operation.id == operation_id, error)


async def set_dev_server_stage(session: AsyncSession, project_id: int, generation: int, stage: str) -> None:
    """Tell the stage of every start up to `generation` that hasn't ended, and of which it isn't known."""
    news = Operation.stage.is_distinct_from(stage)
    await _change(session, _dev_server(project_id, generation, _STARTING) & news, stage=stage)


async def finish_starts(
    session: AsyncSession, project_id: int, generation: int, error: dict[str, Any] | None = None
) -> None:
    """The server runs, or its start failed: end the starts up to `generation`; older stops were superseded."""
    await _end(session, _dev_server(project_id, generation, _STARTING), error)
    await _end(session, _dev_server(project_id, generation, _STOPPING), _superseded("start"))


async def finish_stops(session: AsyncSession, project_id: int, generation: int) -> None:
    """The server has stopped: end the stops up to `generation`; older starts were superseded."""
    await _end(session, _dev_server(project_id, generation, _STOPPING), None)
    await _end(session, _dev_server(project_id, generation, _STARTING), _superseded("stop"))


async def abandon(session: AsyncSession, project_id: int, *, but: UUID) -> None:
    """The project is being deleted: end all its other operations."""
    error = {"code": "project_deleted", "detail": "The project was deleted meanwhile.", "retryable": False}
    await _end(session, (Operation.project_id == project_id) & (Operation.id != but), error)


def _superseded(by: str) -> dict[str, Any]:
    return {"code": SUPERSEDED, "detail": f"A later {by} took its place.", "retryable": False}


def _dev_server(project_id: int, generation: int, kinds: tuple[OperationKind, ...]) -> ColumnElement[bool]:
    return (Operation.project_id == project_id) & Operation.kind.in_(kinds) & (Operation.generation <= generation)


async def _end(session: AsyncSession, condition: ColumnElement[bool], error: dict[str, Any] | None) -> None:
    state = OperationState.SUCCEEDED if error is None else OperationState.FAILED
    await _change(session, condition, state=state, error=error, ended_at=func.now())


async def _change(session: AsyncSession, condition: ColumnElement[bool], **values: object) -> bool:
    """Whether there was one that hadn't ended."""
    rows = await session.scalars(
        update(Operation)
        .where(condition, Operation.state == OperationState.RUNNING)
        .values(**values)
        .returning(Operation.id)
    )
    changed = rows.all()
    for operation_id in changed:
        await session.execute(select(func.pg_notify(CHANNEL, str(operation_id))))
    return bool(changed)
