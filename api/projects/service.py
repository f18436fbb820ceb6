"""Creating, forking and deleting projects: the row first, then the workflow whose id follows from it."""

from collections.abc import Awaitable
from urllib.parse import urlsplit
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession
from temporalio.service import RPCError

from api.dev_servers.schemas import present_dev_server
from api.projects.schemas import DEFAULT_TEMPLATE, ProjectIn, ProjectOut
from api.services import ApiConfig, Services
from storage import idempotency, operations, project_views, projects, task_recovery
from storage.credentials import Viewer
from storage.idempotency import Claim
from storage.operations import OperationRecord
from storage.project_views import ProjectView
from storage.projects import NewProject, ProjectRecord
from workflows.contracts.errors import ConflictError, InvalidError, NotFoundError
from workflows.contracts.operations import OperationKind, OperationState
from workflows.contracts.projects import ProjectInput, ProjectState
from workflows.contracts.starts import start_delete_project, start_provision_project

log = structlog.get_logger("api.projects")


async def create(
    services: Services, user_id: int, body: ProjectIn, claim: Claim | None
) -> tuple[ProjectRecord, OperationRecord]:
    """Make a project from a template or a git repository; the one that an earlier attempt under `claim` has made.

    Raises `InvalidError` `unknown_template` or `bad_git_url`, `ConflictError` `project_limit` or `project_deleted`.
    """
    template = body.template
    if body.git_url is not None:
        _check_git_url(body.git_url)
    else:
        template = template or DEFAULT_TEMPLATE
        if template not in services.templates:
            known = ", ".join(sorted(services.templates))
            raise InvalidError(f"There is no template of that name. There are: {known}.", code="unknown_template")
    new = NewProject(user_id, body.name, body.description, template, body.git_url, body.git_ref)
    return await _provision(services, new, claim)


async def fork(
    services: Services, source: ProjectRecord, name: str | None, claim: Claim | None
) -> tuple[ProjectRecord, OperationRecord]:
    """Make a project from a copy of another's files. Raises `ConflictError` `project_not_ready`, and as `create`."""
    if source.state != ProjectState.READY:
        raise ConflictError(
            f"Only a ready project can be forked; this one is {source.state}.", code="project_not_ready"
        )
    return await _provision(
        services,
        NewProject(
            source.user_id,
            name or f"{source.name[:90]} (fork)",
            source.description,
            template=source.template,
            git_url=source.git_url,
            git_ref=source.git_ref,
            source_project_id=source.id,
        ),
        claim,
    )


async def _provision(services: Services, new: NewProject, claim: Claim | None) -> tuple[ProjectRecord, OperationRecord]:
    client = await services.temporal.require()
    async with services.database.transaction() as session:
        earlier = await idempotency.made(session, claim)
        if earlier is not None:
            project, operation = await _made_before(session, new.user_id, UUID(earlier))
        else:
            project = await projects.create(session, new, limit=services.config.project_limit)
            operation = await operations.create(
                session, user_id=new.user_id, project_id=project.id, kind=OperationKind.PROVISION_PROJECT
            )
            await idempotency.note_made(session, claim, str(operation.id))
    if operation.state == OperationState.RUNNING:
        await _start(start_provision_project(client, _workflow_input(project, operation)))
    return project, operation


async def _made_before(
    session: AsyncSession, user_id: int, operation_id: UUID
) -> tuple[ProjectRecord, OperationRecord]:
    operation = await operations.get(session, operation_id, user_id=user_id)
    project = None if operation is None else await projects.get(session, operation.project_id)
    if operation is None or project is None:
        raise ConflictError("The project that this request made has been deleted since.", code="project_deleted")
    return project, operation


async def delete(services: Services, project: ProjectRecord) -> OperationRecord:
    """Begin the deletion; legal in every state but `deleting`, where it raises `NotFoundError`."""
    client = await services.temporal.require()
    async with services.database.transaction() as session:
        locked = await projects.lock(session, project.id)
        if locked is None or not await projects.set_state(session, project.id, ProjectState.DELETING):
            raise NotFoundError
        operation = await operations.create(
            session, user_id=project.user_id, project_id=project.id, kind=OperationKind.DELETE_PROJECT
        )
        await operations.abandon(session, project.id, but=operation.id)
        await task_recovery.cancel_all(session, project.id)
    await _start(start_delete_project(client, _workflow_input(project, operation)))
    return operation


async def reread(services: Services, project: ProjectRecord) -> ProjectOut:
    """The project as clients see it now. Raises `NotFoundError` when it has vanished meanwhile."""
    view = await project_views.get(services.database, project.id, Viewer(project.user_id))
    if view is None:
        raise NotFoundError
    return present(services.config, view)


def present(config: ApiConfig, view: ProjectView) -> ProjectOut:
    """A project as clients see it."""
    project = view.project
    return ProjectOut(
        id=project.id,
        name=project.name,
        description=project.description,
        template=project.template,
        git_url=project.git_url,
        state=ProjectState(project.state),
        state_reason=project.state_reason,
        dev_server=present_dev_server(config, view),
        created_at=project.created_at,
        updated_at=project.updated_at,
    )


def _workflow_input(project: ProjectRecord, operation: OperationRecord) -> ProjectInput:
    return ProjectInput(user_id=project.user_id, project_id=project.id, operation_id=str(operation.id))


async def _start(starting: Awaitable[None]) -> None:
    """Start the workflow. The row stands already: should Temporal fail right here, `Reconcile` starts it."""
    try:
        await starting
    except RPCError as error:
        log.warning("project.workflow_delayed", error=error.status.name)


def _check_git_url(url: str) -> None:
    """What can be said without asking the network; addresses are checked when it is fetched."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidError("git_url isn't a valid address.", code="bad_git_url") from error
    if parts.scheme != "https" or not parts.hostname:
        raise InvalidError("git_url must begin with https:// and name a host.", code="bad_git_url")
    if parts.username is not None or parts.password is not None:
        raise InvalidError("git_url must not hold a user name or password.", code="bad_git_url")
    if port not in {None, 443}:
        raise InvalidError("git_url must use the standard port 443.", code="bad_git_url")
