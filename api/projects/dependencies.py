"""The owner check of every route below a project: someone else's project and none at all answer alike."""

from typing import Annotated

from fastapi import Depends, Path
from fastapi.requests import HTTPConnection

from api.auth.dependencies import CurrentUser, Principal, StreamUser
from api.auth.reading import ReaderAuth
from api.services import Services, ServicesDep
from storage import project_views, projects
from storage.project_views import ProjectView
from storage.projects import ProjectRecord
from workflows.contracts.errors import NotFoundError

ProjectId = Annotated[int, Path(ge=1, lt=2**63, description="The project's id.")]


async def owned_project(project_id: ProjectId, user: CurrentUser, services: ServicesDep) -> ProjectRecord:
    """The caller's project. Raises `NotFoundError` for a missing one and for somebody else's alike."""
    return await _find(services, project_id, user)


class OwnedView(ReaderAuth):
    """As `owned_project`, with all that clients see of it: user, owner and project in one statement."""

    async def __call__(  # type: ignore[override]  # FastAPI reads each signature by itself
        self, connection: HTTPConnection, project_id: ProjectId
    ) -> ProjectView:
        """The view. Raises `NotFoundError` as `owned_project` does."""
        reader = await self.reader(connection)
        view = await reader.read(lambda database, viewer: project_views.get(database, project_id, viewer))
        if view is None:
            raise NotFoundError
        return view


async def streamed_project(project_id: ProjectId, user: StreamUser, services: ServicesDep) -> ProjectRecord:
    """As `owned_project`, where a `?ticket=` in the query string is taken too: SSE and WebSocket."""
    return await _find(services, project_id, user)


async def require_owned(services: Services, project_id: int | None, user: Principal) -> None:
    """For lists that name a project: raises as `owned_project` does. None: no project was named."""
    if project_id is not None:
        await _find(services, project_id, user)


async def _find(services: Services, project_id: int, user: Principal) -> ProjectRecord:
    async with services.database.reading() as session:
        project = await projects.get(session, project_id)
    if project is None or project.user_id != user.user_id:
        raise NotFoundError
    return project


OwnedProjectView = Annotated[ProjectView, Depends(OwnedView())]
OwnedProject = Annotated[ProjectRecord, Depends(owned_project)]
StreamedProject = Annotated[ProjectRecord, Depends(streamed_project)]
