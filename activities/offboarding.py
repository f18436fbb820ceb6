"""The effects of a user's deletion: their projects go by `DeleteProject`, then their rows."""

from typing import Final

import structlog
from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError

from activities.working import working
from storage import operations, projects, task_recovery, users
from storage.engine import Database
from workflows.contracts.offboarding import OffboardingActivities, OffboardInput
from workflows.contracts.operations import OperationKind
from workflows.contracts.projects import ProjectInput, ProjectState
from workflows.contracts.starts import start_delete_project

log = structlog.get_logger()

_AT_ONCE: Final = 200
"""Projects that are deleted at a time; the next attempt takes the rest."""


class Offboarding(OffboardingActivities):
    """Offboarding activities over the database and Temporal itself."""

    def __init__(self, database: Database, client: Client) -> None:
        self._database = database
        self._client = client

    @activity.defn(name="delete_user_projects")
    async def delete_user_projects(self, user: OffboardInput) -> None:
        """See `OffboardingActivities`."""
        async with working():
            async with self._database.transaction() as session:
                left = await projects.ids_of(session, user.user_id, limit=_AT_ONCE)
            for project_id in left:
                await self._delete(user.user_id, project_id)
        if left:
            raise ApplicationError(f"{len(left)} projects are still being deleted.", type="projects_remain")

    async def _delete(self, user_id: int, project_id: int) -> None:
        async with self._database.transaction() as session:
            if await projects.lock(session, project_id) is None:
                return
            kind = OperationKind.DELETE_PROJECT
            operation = await operations.running(session, project_id, kind)
            if operation is None:
                operation = await operations.create(session, user_id=user_id, project_id=project_id, kind=kind)
            if await projects.set_state(session, project_id, ProjectState.DELETING):
                await operations.abandon(session, project_id, but=operation.id)
                await task_recovery.cancel_all(session, project_id)
        project = ProjectInput(user_id=user_id, project_id=project_id, operation_id=str(operation.id))
        await start_delete_project(self._client, project)

    @activity.defn(name="remove_user")
    async def remove_user(self, user: OffboardInput) -> bool:
        """See `OffboardingActivities`. Projects are made under the user's lock, so none comes while it is held."""
        async with self._database.transaction() as session:
            record = await users.lock(session, user.user_id)
            if record is None:
                return True
            if not record.is_leaving:
                raise ApplicationError("This user isn't leaving.", type="not_leaving", non_retryable=True)
            if await projects.ids_of(session, user.user_id, limit=1):
                return False
            await users.delete(session, user.user_id)
        log.info("user.removed", user_id=user.user_id)
        return True
