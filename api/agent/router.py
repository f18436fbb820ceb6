"""`/api/agent`: tasks that work inside a project."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Response, status

from activities.ports import media_type_of
from api.agent import service
from api.agent.dependencies import OwnedTask, StreamedTask
from api.agent.schemas import ApprovalOut, DecisionIn, MessageOut, SteeringIn, TaskIn, TaskOut, TaskPatch
from api.auth.access import may_still_see
from api.auth.dependencies import CurrentUser, StreamUser
from api.errors import problems
from api.events.router import resume_point
from api.idempotency import HeldClaim
from api.operations import waiting
from api.pagination import Page, PageQuery
from api.prefer import WantedWait, operation_location
from api.projects.dependencies import require_owned
from api.services import Services, ServicesDep
from api.sse import event_frames, event_stream
from storage import projects, task_log, task_steps, task_views
from storage.agent_tasks import TaskRecord
from storage.task_views import TaskFilter
from workflows.contracts.agent_tasks import FINAL_STATES, TaskState
from workflows.contracts.errors import NotFoundError
from workflows.contracts.events import Event, EventType
from workflows.contracts.operations import OperationState

router = APIRouter(prefix="/api/agent", tags=["agent"])

CallId = Annotated[str, Path(max_length=100)]
ProjectFilter = Annotated[int | None, Query(ge=1, lt=2**63)]


@router.post(
    "/tasks",
    status_code=status.HTTP_202_ACCEPTED,
    responses={
        201: {"model": TaskOut},
        **problems(
            401,
            403,
            404,
            {409: "chat_busy`, `queue_full`, `too_many_tasks`, `task_deleted"},
            {422: "unknown_model`, `unknown_tool"},
            503,
        ),
    },
)
async def create_task(
    body: TaskIn, user: CurrentUser, services: ServicesDep, claim: HeldClaim, wait: WantedWait, response: Response
) -> TaskOut:
    """Give the agent a task. It goes on whatever becomes of the client.

    Of a chat's tasks one runs at a time. `on_busy`: `reject` answers 409 `chat_busy`; `enqueue` runs it after those
    before it, at most 20 of them (409 `queue_full`); `interrupt` cancels those first. A task that is being cancelled
    is waited for and isn't in the way. 409 `too_many_tasks` at 100 unended tasks of yours.

    With `Prefer: wait=N` the answer is held until the task has ended (201) or waits for an approval (202).
    """
    begun = await service.create(services, user.user_id, body, claim)
    return await _answer(services, begun.task, wait, response, ended=status.HTTP_201_CREATED)


@router.get("/tasks", responses=problems(401, 403, 404, 422))
async def list_tasks(
    user: CurrentUser,
    services: ServicesDep,
    page: PageQuery,
    project_id: ProjectFilter = None,
    state: TaskState | None = None,
) -> Page[TaskOut]:
    """Your tasks, newest first: the agent's and chat replies.

    A list shows of each task its last 20 steps, and of each text and result the first 4,000 characters;
    `GET /api/agent/tasks/{task_id}` shows all.
    """
    await require_owned(services, project_id, user)
    wanted = TaskFilter(user.user_id, project_id, state)
    before, limit = page.after_uuid(), page.limit + 1
    async with services.database.reading() as session:
        views = await task_views.page(session, wanted, before=before, limit=limit)
    shown = [TaskOut.of(view) for view in views[: page.limit]]
    return page.answer(shown, more=len(views) > page.limit, last_id=lambda task: task.id)


@router.get("/tasks/{task_id}", responses=problems(401, 403, 404, 422))
async def get_task(task: OwnedTask, services: ServicesDep) -> TaskOut:
    """One task with all its steps, calls and approvals; a chat's reply is one, too."""
    return await service.view(services, task.id, task.user_id)


@router.get(
    "/tasks/{task_id}/calls/{call_id}/image",
    response_class=Response,
    responses={200: {"content": {"image/png": {}, "image/jpeg": {}}}, **problems(401, 403, 404, 422)},
)
async def get_call_image(task: OwnedTask, call_id: CallId, services: ServicesDep) -> Response:
    """The picture that a tool call has answered with, e.g. `view_page`'s screenshot."""
    async with services.database.reading() as session:
        data = await task_steps.image_of(session, task.id, call_id)
    if data is None:
        raise NotFoundError
    return Response(data, media_type=media_type_of(data), headers={"Cache-Control": "private, max-age=86400"})


@router.patch(
    "/tasks/{task_id}",
    responses=problems(401, 403, 404, {409: "task_ended"}, {422: "not_raised"}),
)
async def patch_task(task: OwnedTask, body: TaskPatch, services: ServicesDep) -> TaskOut:
    """Raise its bounds; a task that paused because of them goes on.

    422 `not_raised` for a bound lower than now, or a budget where there was none.
    """
    await service.raise_bounds(services, task, body)
    return await service.view(services, task.id, task.user_id)


@router.post(
    "/tasks/{task_id}/cancel",
    status_code=status.HTTP_202_ACCEPTED,
    responses={200: {"model": TaskOut}, **problems(401, 403, 404, 422)},
)
async def cancel_task(task: OwnedTask, services: ServicesDep, wait: WantedWait, response: Response) -> TaskOut:
    """End the task: no new tool call begins, and what runs is killed. Idempotent; an ended task stays as it is.

    With `Prefer: wait=N` 200 once it has ended.
    """
    await service.cancel(services, task)
    return await _answer(services, task, wait, response, ended=status.HTTP_200_OK)


@router.post(
    "/tasks/{task_id}/approvals/{approval_id}",
    responses=problems(401, 403, 404, {409: "already_resolved`, `task_ended"}, 422),
)
async def decide_approval(
    task: OwnedTask, approval_id: UUID, body: DecisionIn, services: ServicesDep, claim: HeldClaim
) -> ApprovalOut:
    """Answer a question of the task's.

    409 `already_resolved` carries `state`, `decision` and `resolved_at` of the first answer; `decision` is null when
    nobody answered in time, which counts as denied.
    """
    return ApprovalOut.model_validate(await service.decide(services, task, approval_id, body, claim))


@router.post(
    "/tasks/{task_id}/messages",
    status_code=status.HTTP_202_ACCEPTED,
    responses=problems(401, 403, 404, {409: "task_ended"}, 422),
)
async def steer_task(
    task: OwnedTask, body: SteeringIn, services: ServicesDep, claim: HeldClaim, response: Response
) -> MessageOut:
    """Say something to a running task: its next step sees it. The same `client_message_id` gives the same message."""
    message = await service.steer(services, task, body, claim)
    response.headers["Location"] = operation_location(task.id)
    return MessageOut.model_validate(message)


@router.post(
    "/tasks/{task_id}/retry",
    status_code=status.HTTP_202_ACCEPTED,
    responses={
        201: {"model": TaskOut},
        **problems(
            401, 403, 404, {409: "task_running`, `chat_busy`, `queue_full`, `too_many_tasks`, `task_deleted"}, 422, 503
        ),
    },
)
async def retry_task(
    task: OwnedTask, services: ServicesDep, claim: HeldClaim, wait: WantedWait, response: Response
) -> TaskOut:
    """Begin an ended task again, as a new one with the same prompt and the chat as it was then; see `retry_of`."""
    begun = await service.retry(services, task, claim)
    return await _answer(services, begun.task, wait, response, ended=status.HTTP_201_CREATED)


@router.get(
    "/tasks/{task_id}/events",
    response_class=Response,
    responses={
        200: {"description": "Events as they happen.", "content": {"text/event-stream": {}}},
        204: {"description": "The task has ended, and `since` is not before its final event."},
        **problems(401, 403, 404, 422, 503),
    },
)
async def task_events(
    task: StreamedTask, user: StreamUser, services: ServicesDep, since: Annotated[int, Depends(resume_point)]
) -> Response:
    """The project's log, this task's events only: every one after `since` once, in order, then live.

    Frames are those of `GET /api/projects/{project_id}/events`. The stream ends with the `task.state` that is final,
    also when the task ended long ago; whoever has seen that already is answered 204, which ends an EventSource.
    """
    async with services.database.reading() as session:
        extent = await task_log.extent(session, task.project_id, task.id)
    async with services.database.reading() as session:
        project = await projects.get(session, task.project_id)
    if extent is None or project is None:
        raise NotFoundError
    if extent.final_seq is not None and since >= extent.final_seq:
        return Response(status_code=status.HTTP_204_NO_CONTENT)
    # A number that the log hasn't reached would hide the end for ever.
    frames = _frames(services, task, min(since, extent.last_seq))
    return event_stream(frames, allowed=partial(may_still_see, services, user, project))


async def _frames(services: Services, task: TaskRecord, since: int) -> AsyncIterator[bytes]:
    follow = services.events.follow_batches(task.project_id, since=since, task_id=str(task.id))
    async with aclosing(follow) as batches:
        async for batch in batches:
            end = next((n for n, event in enumerate(batch, start=1) if _is_final(event)), None)
            yield event_frames(batch[:end])
            if end is not None:
                return


def _is_final(event: Event) -> bool:
    """Whether the event tells a task's end."""
    return event.type == EventType.TASK_STATE and event.data.get("state") in FINAL_STATES


async def _answer(services: Services, task: TaskRecord, wait: int, response: Response, *, ended: int) -> TaskOut:
    response.headers["Location"] = operation_location(task.id)
    if wait:
        operation = await waiting.find(services, task.id, task.user_id)
        operation = await waiting.until_settled(services, operation, wait)
        if operation.state != OperationState.RUNNING:
            response.status_code = ended
    return await service.view(services, task.id, task.user_id)
