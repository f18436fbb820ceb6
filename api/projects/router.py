"""`/api/projects`: create, read, rename, fork, delete."""

from typing import Annotated

from fastapi import APIRouter, Body, Request, Response, status

from api.auth.dependencies import CurrentUser
from api.auth.reading import CurrentReader
from api.errors import problems
from api.idempotency import HeldClaim
from api.operations.waiting import until_ended
from api.pagination import Page, PageQuery
from api.prefer import WantedWait, operation_location
from api.projects import service
from api.projects.dependencies import OwnedProject, OwnedProjectView
from api.projects.schemas import ForkIn, ProjectIn, ProjectOut, ProjectPatch
from api.services import Services, ServicesDep, get_services
from storage import project_views, projects
from storage.operations import OperationRecord
from storage.projects import ProjectRecord
from workflows.contracts.errors import NotFoundError
from workflows.contracts.operations import OperationState

router = APIRouter(prefix="/api/projects", tags=["projects"])


@router.get("/{project_id}", responses=problems(401, 403, 404, 422))
async def get_project(request: Request, view: OwnedProjectView) -> ProjectOut:
    """One project with its dev server."""
    return service.present(get_services(request).config, view)


@router.get("", responses=problems(401, 403, 422))
async def list_projects(request: Request, reader: CurrentReader, page: PageQuery) -> Page[ProjectOut]:
    """The caller's projects, newest first."""
    after, limit = page.after_id(), page.limit + 1
    views = await reader.read(lambda database, viewer: project_views.page(database, viewer, after=after, limit=limit))
    config = get_services(request).config
    shown = [service.present(config, view) for view in views[: page.limit]]
    return page.answer(shown, more=len(views) > page.limit, last_id=lambda project: project.id)


@router.post(
    "",
    status_code=status.HTTP_202_ACCEPTED,
    responses={201: {"model": ProjectOut}, **problems(401, 403, 409, 422, 503)},
)
async def create_project(
    body: ProjectIn,
    user: CurrentUser,
    services: ServicesDep,
    claim: HeldClaim,
    wait: WantedWait,
    response: Response,
) -> ProjectOut:
    """Make a project from a template (`vite-react` by default) or a git repository over https.

    202 while it is being provisioned; with `Prefer: wait=N` 201 once that has ended, well or not: see `state`.
    409 `project_limit`; `project_deleted` when it was since the first request with this key; 422 `unknown_template`,
    `bad_git_url`.
    """
    project, operation = await service.create(services, user.user_id, body, claim)
    return await _answer_made(services, project, operation, wait, response)


@router.patch("/{project_id}", responses=problems(401, 403, 404, 422))
async def patch_project(project: OwnedProject, body: ProjectPatch, services: ServicesDep) -> ProjectOut:
    """Rename it or describe it anew."""
    async with services.database.transaction() as session:
        changed = await projects.rename(session, project.id, name=body.name, description=body.description)
    if changed is None:
        raise NotFoundError
    return await service.reread(services, changed)


@router.delete(
    "/{project_id}",
    status_code=status.HTTP_202_ACCEPTED,
    responses={200: {"model": ProjectOut}, **problems(401, 403, 404, 422, 503)},
)
async def delete_project(
    project: OwnedProject, services: ServicesDep, wait: WantedWait, response: Response
) -> ProjectOut:
    """Remove container, files and rows; legal in every state. A second deletion is 404.

    With `Prefer: wait=N` 200 once all is gone, with the project as it last was.
    """
    operation = await service.delete(services, project)
    last = await service.reread(services, project)
    response.headers["Location"] = operation_location(operation.id)
    if wait and (await until_ended(services, operation, wait)).state != OperationState.RUNNING:
        response.status_code = status.HTTP_200_OK
    return last


@router.post(
    "/{project_id}/fork",
    status_code=status.HTTP_202_ACCEPTED,
    responses={201: {"model": ProjectOut}, **problems(401, 403, 404, 409, 422, 503)},
)
async def fork_project(
    project: OwnedProject,
    services: ServicesDep,
    claim: HeldClaim,
    wait: WantedWait,
    response: Response,
    body: Annotated[ForkIn | None, Body()] = None,
) -> ProjectOut:
    """Make a new project from a copy of this one's files, without `node_modules` and variables.

    409 `project_not_ready` while the source is being made or deleted; `project_limit`; `project_deleted` when the copy
    was since the first request with this key.
    """
    copy, operation = await service.fork(services, project, None if body is None else body.name, claim)
    return await _answer_made(services, copy, operation, wait, response)


async def _answer_made(
    services: Services, project: ProjectRecord, operation: OperationRecord, wait: int, response: Response
) -> ProjectOut:
    response.headers["Location"] = operation_location(operation.id)
    if wait and (await until_ended(services, operation, wait)).state != OperationState.RUNNING:
        response.status_code = status.HTTP_201_CREATED
    return await service.reread(services, project)
