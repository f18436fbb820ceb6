"""How a command for a dev server is accepted, whoever gives it: its generation and its operation in one commit."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from storage import dev_servers, operations, projects
from storage.operations import OperationRecord
from storage.projects import ProjectRecord
from storage.tables import Operation
from workflows.contracts.dev_servers import DevServerAction, DevServerCommand
from workflows.contracts.errors import ConflictError, NotFoundError
from workflows.contracts.operations import OperationKind
from workflows.contracts.projects import ProjectState

_KINDS: Final = {
    DevServerAction.START: OperationKind.START_DEV_SERVER,
    DevServerAction.STOP: OperationKind.STOP_DEV_SERVER,
    DevServerAction.RESTART: OperationKind.RESTART_DEV_SERVER,
}


@dataclass(frozen=True)
class AcceptedCommand:
    """A command that stands once the transaction has committed; its workflow is told after that."""

    command: DevServerCommand
    operation: OperationRecord


async def accept(session: AsyncSession, project_id: int, action: DevServerAction) -> AcceptedCommand:
    """Accept a command, the project's row locked.

    Raises `NotFoundError` when the project is gone, `ConflictError` `project_failed` or `project_deleting`.
    """
    project = _commandable(await projects.lock(session, project_id))
    command = await dev_servers.accept(session, project_id, action)
    operation = await operations.create(
        session,
        user_id=project.user_id,
        project_id=project_id,
        kind=_KINDS[action],
        generation=command.generation,
    )
    return AcceptedCommand(command, operation)


async def restarted_after(session: AsyncSession, project_id: int, generation: int) -> int | None:
    """The first restart accepted after that generation, or None. Good for as long as operations are kept."""
    return await session.scalar(
        select(func.min(Operation.generation)).where(
            Operation.project_id == project_id,
            Operation.kind == OperationKind.RESTART_DEV_SERVER,
            Operation.generation > generation,
        )
    )


def _commandable(project: ProjectRecord | None) -> ProjectRecord:
    if project is None:
        raise NotFoundError
    if project.state == ProjectState.DELETING:
        raise ConflictError("The project is being deleted.", code="project_deleting")
    if project.state == ProjectState.FAILED:
        raise ConflictError(
            f"The project could not be made: {project.state_reason} Delete it and make it anew.", code="project_failed"
        )
    return project
