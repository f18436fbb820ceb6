"""Creating, forking and deleting projects: the row first, then the workflow whose id follows from it."""

from collections.abc import Awaitable
from urllib.parse import urlsplit

import structlog
from temporalio.service import RPCError

from api.dev_servers import schemas as dev_server_schemas
from api.projects.schemas import DEFAULT_TEMPLATE, ProjectIn, ProjectOut
from api.services import Services
from storage import dev_servers, leases, operations, projects
from storage.dev_servers import DevServerRecord
from storage.operations import OperationRecord
from storage.projects import NewProject, ProjectRecord
from workflows.contracts.errors import ConflictError, InvalidError, NotFoundError
from workflows.contracts.operations import OperationKind
from workflows.contracts.projects import ProjectInput, ProjectState
from workflows.contracts.starts import start_delete_project, start_provision_project

log = structlog.get_logger()


async def create(services: Services, user_id: int, body: ProjectIn) -> tuple[ProjectRecord, OperationRecord]:
    """Make a project from a template or a git repository.

    Raises `InvalidError` `unknown_template` or `bad_git_url`, `ConflictError` `project_limit`.
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
    return await _provision(services, new)


async def fork(services: Services, source: ProjectRecord, name: str | None) -> tuple[ProjectRecord, OperationRecord]:
    """Make a project from a copy of another's files. Raises `ConflictError` `project_not_ready`."""
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
    )


async def _provision(services: Services, new: NewProject) -> tuple[ProjectRecord, OperationRecord]:
    client = await services.temporal.require()
    async with services.database.transaction() as session:
        project = await projects.create(session, new, limit=services.config.project_limit)
        operation = await operations.create(
            session, user_id=new.user_id, project_id=project.id, kind=OperationKind.PROVISION_PROJECT
        )
    await _start(start_provision_project(client, _workflow_input(project, operation)))
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
    await _start(start_delete_project(client, _workflow_input(project, operation)))
    return operation


async def present(services: Services, records: list[ProjectRecord]) -> list[ProjectOut]:
    """Projects as clients see them, in their order; one that has vanished meanwhile is left out."""
    ids = [record.id for record in records]
    async with services.database.transaction() as session:
        servers = await dev_servers.of_projects(session, ids)
        held = await leases.of_projects(session, ids)
    return [
        _present_one(services, record, servers[record.id], held.get(record.id, []))
        for record in records
        if record.id in servers
    ]


async def present_one(services: Services, record: ProjectRecord) -> ProjectOut:
    """One project as clients see it. Raises `NotFoundError` when it has vanished meanwhile."""
    shown = await present(services, [record])
    if not shown:
        raise NotFoundError
    return shown[0]


def _present_one(
    services: Services, record: ProjectRecord, server: DevServerRecord, held: list[leases.LeaseRecord]
) -> ProjectOut:
    return ProjectOut(
        id=record.id,
        name=record.name,
        description=record.description,
        template=record.template,
        git_url=record.git_url,
        state=ProjectState(record.state),
        state_reason=record.state_reason,
        dev_server=dev_server_schemas.present(services.config, record, server, held),
        created_at=record.created_at,
        updated_at=record.updated_at,
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
