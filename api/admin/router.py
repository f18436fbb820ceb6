"""`/api/admin`: for superusers."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response, status

from api.admin import service
from api.admin.schemas import AdminDevServer, AdminProject, AdminTask, AdminUser, AdminUserPatch
from api.auth.dependencies import SuperUser
from api.errors import problems
from api.pagination import Page, PageQuery, PageRequest
from api.services import Services, ServicesDep
from storage import overview, task_views, users
from storage.overview import ProjectOverview
from storage.task_views import TaskFilter
from workflows.contracts.agent_tasks import TaskState
from workflows.contracts.dev_servers import DevServerState
from workflows.contracts.errors import ConflictError
from workflows.contracts.reconcile import ReconcileInput, ReconcileReport
from workflows.contracts.starts import run_reconcile

router = APIRouter(prefix="/api/admin", tags=["admin"])

_MAX_ID = 2**63 - 1
UserId = Annotated[int, Path(ge=1, le=_MAX_ID)]
UserFilter = Annotated[int | None, Query(ge=1, le=_MAX_ID)]


@router.get("/users")
async def list_users(_user: SuperUser, services: ServicesDep, page: PageQuery) -> Page[AdminUser]:
    """All users by id."""
    async with services.database.reading() as session:
        records = await users.page(session, after=page.after_id() or 0, limit=page.limit + 1)
    shown = [AdminUser.of(record) for record in records[: page.limit]]
    return page.answer(shown, more=len(records) > page.limit, last_id=lambda user: user.id)


@router.patch("/users/{user_id}", responses=problems(404, {409: "own_account, user_leaving"}))
async def patch_user(user: SuperUser, services: ServicesDep, user_id: UserId, body: AdminUserPatch) -> AdminUser:
    """Shut a user out or let them in again, make them a superuser or not. Shutting out ends all their sessions
    and revokes their key at the LLM proxy. A budget that is raised lets tasks go on that have paused for it.
    """
    if user_id == user.user_id and (body.is_active, body.is_superuser) != (None, None):
        raise ConflictError("Nobody shuts out or demotes themselves: ask another superuser.", code="own_account")
    return AdminUser.of(await service.change_user(services, user_id, body))


@router.delete("/users/{user_id}", status_code=status.HTTP_202_ACCEPTED, responses=problems(404, {409: "own_account"}))
async def delete_user(user: SuperUser, services: ServicesDep, user_id: UserId) -> AdminUser:
    """Delete a user: shut out at once; then their projects go, their key at the LLM proxy, and at last their rows."""
    if user_id == user.user_id:
        raise ConflictError("Nobody deletes themselves: ask another superuser.", code="own_account")
    return AdminUser.of(await service.delete_user(services, user_id))


@router.post("/users/{user_id}/model-key", status_code=status.HTTP_202_ACCEPTED, responses=problems(404))
async def rotate_model_key(_user: SuperUser, services: ServicesDep, user_id: UserId) -> Response:
    """Replace a user's key at the LLM proxy. The old one is used no more from now on; calls wait for the new one."""
    await service.rotate_model_key(services, user_id)
    return Response(status_code=status.HTTP_202_ACCEPTED)


@router.post("/sweep", responses=problems(503))
async def sweep(_user: SuperUser, services: ServicesDep, *, dry_run: bool = True) -> ReconcileReport:
    """Compare rows, running workflows and containers, as the schedule does every minute.

    By default nothing is changed: the report tells what a sweep would mend or remove.
    """
    client = await services.temporal.require()
    return await run_reconcile(client, ReconcileInput(dry_run=dry_run))


@router.get("/projects")
async def list_all_projects(
    _user: SuperUser, services: ServicesDep, page: PageQuery, user_id: UserFilter = None
) -> Page[AdminProject]:
    """All projects by id."""
    records = await _overview(services, page, user_id=user_id)
    shown = [AdminProject.model_validate(record) for record in records[: page.limit]]
    return page.answer(shown, more=len(records) > page.limit, last_id=lambda project: project.project_id)


@router.get("/dev-servers")
async def list_dev_servers(
    _user: SuperUser,
    services: ServicesDep,
    page: PageQuery,
    user_id: UserFilter = None,
    state: DevServerState | None = None,
) -> Page[AdminDevServer]:
    """All dev servers by their project's id, also those that never ran."""
    records = await _overview(services, page, user_id=user_id, state=state)
    shown = [AdminDevServer.model_validate(record) for record in records[: page.limit]]
    return page.answer(shown, more=len(records) > page.limit, last_id=lambda server: server.project_id)


@router.get("/tasks")
async def list_all_tasks(
    _user: SuperUser,
    services: ServicesDep,
    page: PageQuery,
    user_id: UserFilter = None,
    state: TaskState | None = None,
) -> Page[AdminTask]:
    """All tasks, newest first, without what was said in them."""
    before, limit = page.after_uuid(), page.limit + 1
    async with services.database.reading() as session:
        records = await task_views.records(session, TaskFilter(user_id, state=state), before=before, limit=limit)
    shown = [AdminTask.model_validate(record) for record in records[: page.limit]]
    return page.answer(shown, more=len(records) > page.limit, last_id=lambda task: task.id)


async def _overview(
    services: Services, page: PageRequest, *, user_id: int | None, state: DevServerState | None = None
) -> list[ProjectOverview]:
    async with services.database.reading() as session:
        return await overview.page(
            session, after=page.after_id() or 0, limit=page.limit + 1, user_id=user_id, dev_server_state=state
        )
