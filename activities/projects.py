"""The effects of a project's life: its files come, its rows say so, and all of it goes again."""

import asyncio
import tempfile
from pathlib import Path
from typing import Final
from uuid import UUID

import structlog
from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from activities.files import git_source
from activities.ports import FileStore, Runtime
from activities.working import working
from storage import operations, projects, task_recovery
from storage.engine import Database
from storage.projects import ProjectRecord
from workflows.contracts.names import ProjectRef, agent_task_id, dev_server_id, provision_project_id
from workflows.contracts.projects import (
    ProjectActivities,
    ProjectInput,
    ProjectState,
    ProvisionFailure,
    ProvisionStage,
)
from workflows.contracts.starts import cancel_agent_task

log = structlog.get_logger()

_POLL_S: Final = 0.3
_GRACE_S: Final = 20.0
"""A workflow that is being ended has this long before it is terminated: its container goes next anyway."""


class Projects(ProjectActivities):
    """Project activities over the database, the files, the runtime and Temporal itself.

    `templates`: name → folder whose content a new project begins with.
    """

    def __init__(
        self,
        database: Database,
        files: FileStore,
        runtime: Runtime,
        client: Client,
        templates: dict[str, Path],
    ) -> None:
        self._database = database
        self._files = files
        self._runtime = runtime
        self._client = client
        self._templates = templates

    @activity.defn(name="create_project_files")
    async def create_project_files(self, project: ProjectInput) -> None:
        """See `ProjectActivities`."""
        record = await self._tell_stage(project, ProvisionStage.CREATING_FILES)
        if record.state == ProjectState.READY:
            return  # a late attempt, or a second run: what was promised is done, and its owner works on it
        async with working():
            if record.source_project_id is not None:
                source = ProjectRef(record.user_id, record.source_project_id)
                await self._files.create(project.ref, self._files.root(source))
            elif record.git_url is not None:
                await self._create_from_git(record)
            else:
                await self._files.create(project.ref, self._template(record.template))

    async def _create_from_git(self, record: ProjectRecord) -> None:
        if await self._files.exists(record.ref):
            return  # an earlier attempt finished; `create` shows a folder only when it is complete
        with tempfile.TemporaryDirectory(prefix="studio-git-") as folder:
            checkout = Path(folder) / "checkout"
            await git_source.fetch(record.git_url or "", record.git_ref, checkout)
            await self._files.create(record.ref, checkout)

    def _template(self, name: str | None) -> Path:
        try:
            return self._templates[name or ""]
        except KeyError:
            raise ApplicationError(
                f"There is no template {name!r} any more.", type="unknown_template", non_retryable=True
            ) from None

    async def _tell_stage(self, project: ProjectInput, stage: ProvisionStage) -> ProjectRecord:
        """Write the stage down, once. A project that is gone, being deleted or failed needs none: not retried."""
        async with self._database.transaction() as session:
            record = await projects.lock(session, project.project_id)
            if record is None or record.state == ProjectState.DELETING:
                raise ApplicationError("The project was deleted.", type="project_deleted", non_retryable=True)
            if record.state == ProjectState.FAILED:
                raise ApplicationError("The project had failed already.", type="superseded", non_retryable=True)
            if record.state == ProjectState.PROVISIONING and await operations.set_stage(
                session, UUID(project.operation_id), stage
            ):
                await projects.set_state(session, project.project_id, ProjectState.PROVISIONING, stage=stage)
            return record

    @activity.defn(name="finish_provision")
    async def finish_provision(self, project: ProjectInput) -> None:
        """See `ProjectActivities`."""
        async with self._database.transaction() as session:
            if await projects.set_state(session, project.project_id, ProjectState.READY):
                await operations.finish(session, UUID(project.operation_id))

    @activity.defn(name="fail_provision")
    async def fail_provision(self, failure: ProvisionFailure) -> None:
        """See `ProjectActivities`. Files go while the row says `provisioning` only: later they are their owner's."""
        project = failure.project
        async with self._database.transaction() as session:
            record = await projects.get(session, project.project_id)
        unfinished = record is not None and record.state == ProjectState.PROVISIONING
        if unfinished:
            async with working():
                await self._files.destroy(project.ref)
        error = {"code": failure.code, "detail": failure.detail, "retryable": False}
        async with self._database.transaction() as session:
            if unfinished:
                await projects.set_state(session, project.project_id, ProjectState.FAILED, reason=failure.detail)
            await operations.finish(session, UUID(project.operation_id), error)

    @activity.defn(name="await_workflows_closed")
    async def await_workflows_closed(self, project: ProjectInput) -> None:
        """See `ProjectActivities`. One that doesn't end in time is terminated: it must not outlive its project."""
        async with self._database.transaction() as session:
            await task_recovery.cancel_all(session, project.project_id)
            tasks = await task_recovery.unended_of(session, project.project_id)
        async with working():
            for task in tasks:
                await cancel_agent_task(self._client, str(task.id))
            for workflow_id in (
                *(agent_task_id(str(task.id)) for task in tasks),
                provision_project_id(project.project_id),
                dev_server_id(project.project_id),
            ):
                try:
                    async with asyncio.timeout(_GRACE_S):
                        await self._until_closed(workflow_id)
                except TimeoutError:
                    log.warning("project.workflow_terminated", workflow_id=workflow_id)
                    await self._terminate(workflow_id)

    async def _until_closed(self, workflow_id: str) -> None:
        handle = self._client.get_workflow_handle(workflow_id)
        while True:
            try:
                description = await handle.describe()
            except RPCError as error:
                if error.status == RPCStatusCode.NOT_FOUND:
                    return
                raise
            if description.status != WorkflowExecutionStatus.RUNNING:
                return
            await asyncio.sleep(_POLL_S)

    async def _terminate(self, workflow_id: str) -> None:
        try:
            await self._client.get_workflow_handle(workflow_id).terminate("its project is being deleted")
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise

    @activity.defn(name="remove_project_container")
    async def remove_project_container(self, project: ProjectInput) -> None:
        """See `ProjectActivities`."""
        async with working():
            await self._runtime.remove(project.ref)
            await self._runtime.remove_user(project.user_id)

    @activity.defn(name="remove_project_files")
    async def remove_project_files(self, project: ProjectInput) -> None:
        """See `ProjectActivities`."""
        async with working():
            await self._files.destroy(project.ref)

    @activity.defn(name="remove_project_rows")
    async def remove_project_rows(self, project: ProjectInput) -> None:
        """See `ProjectActivities`."""
        async with self._database.transaction() as session:
            await projects.delete(session, project.project_id)
            await operations.finish(session, UUID(project.operation_id))
