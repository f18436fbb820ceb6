"""Tasks: the row first, then the workflow whose id follows from it; what gets lost in between, `Reconcile` does."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession
from temporalio.client import Client
from temporalio.service import RPCError

from activities.errors import ModelFault
from activities.tools.registry import all_tools
from api.agent.schemas import DecisionIn, SteeringIn, TaskIn, TaskOut, TaskPatch
from api.services import Services
from storage import chats, idempotency, task_decisions, task_requests, task_views
from storage.agent_tasks import TaskRecord
from storage.chats import MessageRecord
from storage.idempotency import Claim
from storage.task_approvals import ApprovalRecord
from storage.task_requests import Begun, NewTask
from workflows.contracts.agent_tasks import AgentTaskInput, CancelReason, TaskMode
from workflows.contracts.errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from workflows.contracts.starts import cancel_agent_task, nudge_agent_task, start_agent_task

log = structlog.get_logger("api.agent")

_MODELS_TIMEOUT_S: Final = 3.0
_TOOLS: Final = frozenset(all_tools())


async def create(services: Services, user_id: int, body: TaskIn, claim: Claim | None) -> Begun:
    """Begin an agent's task; the one that an earlier attempt under `claim` has made.

    Raises `InvalidError` `unknown_model` or `unknown_tool`, and what `begin` does.
    """
    new = NewTask(
        user_id=user_id,
        project_id=body.project_id,
        chat_id=body.chat_id,
        mode=TaskMode.AGENT,
        prompt=body.prompt,
        model=await wanted_model(services, body.model),
        tools=known_tools(body.tools),
        approval_mode=body.approval_mode,
        max_steps=body.max_steps,
        budget_usd=body.budget_usd,
        on_busy=body.on_busy,
    )
    return await begin(services, lambda session: task_requests.create(session, new), claim)


async def retry(services: Services, task: TaskRecord, claim: Claim | None) -> Begun:
    """Begin an ended task again. Raises what `task_requests.retry` does."""
    return await begin(services, lambda session: task_requests.retry(session, task.id), claim)


async def begin(services: Services, make: Callable[[AsyncSession], Awaitable[Begun]], claim: Claim | None) -> Begun:
    """Write a task down and start it, and have those that it supersedes cancelled.

    Raises what `make` does, `ConflictError` `task_deleted` when what an earlier attempt made is gone, and
    `UnavailableError`, with nothing written, while Temporal is away.
    """
    client = await services.temporal.require()
    async with services.database.transaction() as session:
        earlier = await idempotency.made(session, claim)
        begun = await make(session) if earlier is None else await _begun_before(session, UUID(earlier))
        await idempotency.note_made(session, claim, str(begun.task.id))
    if not begun.task.ended:
        await _delivered(start_agent_task(client, _workflow_input(begun.task)))
    for task_id in begun.superseded:
        await _delivered(cancel_agent_task(client, str(task_id)))
    return begun


async def _begun_before(session: AsyncSession, task_id: UUID) -> Begun:
    begun = await task_requests.begun(session, task_id)
    if begun is None:
        raise ConflictError("The task that this request made has been deleted since.", code="task_deleted")
    return begun


async def cancel(services: Services, task: TaskRecord) -> None:
    """Ask the task to end; its activities hear of it by the commit, also while Temporal is away."""
    async with services.database.transaction() as session:
        now = await task_requests.request_cancel(session, task.id, CancelReason.USER)
    if not now.ended:
        await _tell(services, [task.id], cancel_agent_task)


async def tell_cancelled(services: Services, task_ids: Sequence[UUID]) -> None:
    """Tell workflows that their tasks are cancelled, or gone."""
    await _tell(services, task_ids, cancel_agent_task)


async def decide(
    services: Services, task: TaskRecord, approval_id: UUID, body: DecisionIn, claim: Claim | None
) -> ApprovalRecord:
    """Answer an approval. Raises what `task_decisions.decide` does."""
    async with services.database.transaction() as session:
        if await idempotency.made(session, claim) is None:
            approval = await task_decisions.decide(session, task.id, approval_id, body.decision, body.note)
            await idempotency.note_made(session, claim, str(approval.id))
        else:
            approval = await task_decisions.get(session, task.id, approval_id)
    await _tell(services, [task.id], nudge_agent_task)
    return approval


async def steer(services: Services, task: TaskRecord, body: SteeringIn, claim: Claim | None) -> MessageRecord:
    """Add a message that the task's next step sees. Raises what `task_decisions.steer` does."""
    async with services.database.transaction() as session:
        earlier = await idempotency.made(session, claim)
        if earlier is None:
            message = await task_decisions.steer(session, task.id, body.content, body.client_message_id)
            await idempotency.note_made(session, claim, str(message.id))
        else:
            found = await chats.message(session, UUID(earlier))
            if found is None:
                raise NotFoundError
            message = found
    await _tell(services, [task.id], nudge_agent_task)
    return message


async def raise_bounds(services: Services, task: TaskRecord, body: TaskPatch) -> None:
    """Let the task go further. Raises what `task_decisions.raise_bounds` does."""
    async with services.database.transaction() as session:
        await task_decisions.raise_bounds(session, task.id, budget_usd=body.budget_usd, max_steps=body.max_steps)
    await _tell(services, [task.id], nudge_agent_task)


async def view(services: Services, task_id: UUID, user_id: int) -> TaskOut:
    """The task as its owner sees it now. Raises `NotFoundError`."""
    async with services.database.reading() as session:
        found = await task_views.get(session, task_id, user_id=user_id)
    if found is None:
        raise NotFoundError
    return TaskOut.of(found)


async def wanted_model(services: Services, name: str | None) -> str:
    """The model to use: `name` when the server knows it or can't be asked now, the default one without.

    Raises `InvalidError` `unknown_model`, `UnavailableError` when there is no default before the server has answered.
    """
    known: list[str] = []
    with suppress(ModelFault, TimeoutError):
        async with asyncio.timeout(_MODELS_TIMEOUT_S):
            known = [info.id for info in await services.models.models()]
    chosen = name or services.models.default_model
    if not chosen:
        raise UnavailableError("The model server doesn't answer, and no model was named; try again in a moment.")
    if name is not None and known and name not in known:
        raise InvalidError("There is no model of that name; see GET /api/models.", code="unknown_model")
    return chosen


def known_tools(names: list[str] | None) -> list[str] | None:
    """The tools to offer, each once. Raises `InvalidError` `unknown_tool`."""
    unknown = [name for name in names or [] if name not in _TOOLS]
    if unknown:
        detail = f"There is no tool {unknown[0]!r}; there are {', '.join(sorted(_TOOLS))}."
        raise InvalidError(detail, code="unknown_tool")
    return None if names is None else list(dict.fromkeys(names))


def _workflow_input(task: TaskRecord) -> AgentTaskInput:
    return AgentTaskInput(user_id=task.user_id, project_id=task.project_id, task_id=str(task.id))


async def _tell(services: Services, task_ids: Sequence[UUID], signal: Callable[[Client, str], Awaitable[None]]) -> None:
    """Signal workflows of what has been committed. Should Temporal be away, `Reconcile` does it."""
    if not task_ids:
        return
    try:
        client = await services.temporal.client()
    except UnavailableError:
        log.warning("task.signal_delayed", error="unavailable")
        return
    for task_id in task_ids:
        await _delivered(signal(client, str(task_id)))


async def _delivered(sending: Awaitable[None]) -> None:
    try:
        await sending
    except RPCError as error:
        log.warning("task.signal_delayed", error=error.status.name)
