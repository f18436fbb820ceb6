"""`/api/projects/{id}`: start, stop, restart, status."""

from typing import Any

from fastapi import APIRouter, Request, Response, status

from api.dev_servers import service
from api.dev_servers.schemas import DevServerOut, present_dev_server
from api.errors import problems
from api.operations.waiting import until_ended
from api.prefer import WantedWait, operation_location
from api.projects import service as projects_service
from api.projects.dependencies import OwnedProject, OwnedProjectView
from api.projects.schemas import ProjectOut
from api.services import Services, ServicesDep, get_services
from storage.projects import ProjectRecord
from workflows.contracts.dev_servers import DevServerAction
from workflows.contracts.operations import OperationState

router = APIRouter(prefix="/api/projects/{project_id}", tags=["dev servers"])

_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": ProjectOut},
    **problems(401, 403, 404, 409, 422, 503),
}


@router.get("/status", responses=problems(401, 403, 404, 422))
async def dev_server_status(request: Request, view: OwnedProjectView) -> DevServerOut:
    """How the dev server is, and who keeps it awake."""
    return present_dev_server(get_services(request).config, view)


@router.post("/start", status_code=status.HTTP_202_ACCEPTED, responses=_RESPONSES)
async def start_dev_server(
    project: OwnedProject, services: ServicesDep, wait: WantedWait, response: Response
) -> ProjectOut:
    """Have the dev server running; running already is fine. While the project is provisioned the start waits for it.

    With `Prefer: wait=N` 200 once it runs or has failed: see `dev_server.state`.
    """
    return await _command(services, project, DevServerAction.START, wait, response)


@router.post("/stop", status_code=status.HTTP_202_ACCEPTED, responses=_RESPONSES)
async def stop_dev_server(
    project: OwnedProject, services: ServicesDep, wait: WantedWait, response: Response
) -> ProjectOut:
    """Have the dev server stopped, its files kept; stopped already is fine."""
    return await _command(services, project, DevServerAction.STOP, wait, response)


@router.post("/restart", status_code=status.HTTP_202_ACCEPTED, responses=_RESPONSES)
async def restart_dev_server(
    project: OwnedProject, services: ServicesDep, wait: WantedWait, response: Response
) -> ProjectOut:
    """Stop it if it runs, and start it anew, with the environment variables of now."""
    return await _command(services, project, DevServerAction.RESTART, wait, response)


async def _command(
    services: Services, project: ProjectRecord, action: DevServerAction, wait: int, response: Response
) -> ProjectOut:
    operation = await service.command(services, project, action)
    response.headers["Location"] = operation_location(operation.id)
    if wait and (await until_ended(services, operation, wait)).state != OperationState.RUNNING:
        response.status_code = status.HTTP_200_OK
    return await projects_service.reread(services, project)
