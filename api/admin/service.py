"""What operators change of users. Rows first; the proxy and waiting tasks are told after the commit, or later."""

from typing import Final
from uuid import UUID

import structlog
from temporalio.service import RPCError

from api.admin.schemas import AdminUserPatch
from api.onboarding import begin_onboarding
from api.services import Services
from storage import credentials, model_keys, model_ledger, users
from storage.users import UserRecord
from workflows.contracts.errors import ConflictError, UnavailableError
from workflows.contracts.offboarding import OffboardInput
from workflows.contracts.starts import nudge_agent_task, start_offboard_user

_NUDGED_AT_ONCE: Final = 100
"""Tasks of one user that are told at once of a raised budget; `Reconcile` tells the rest."""

_log = structlog.get_logger("api.admin")


async def change_user(services: Services, user_id: int, patch: AdminUserPatch) -> UserRecord:
    """Apply the patch. Raises `NotFoundError`, `ConflictError` `user_leaving`."""
    has_budget = "monthly_budget_usd" in patch.model_fields_set
    waiting: list[UUID] = []
    async with services.database.transaction() as session:
        if patch.is_active and (await users.get(session, user_id)).is_leaving:
            raise ConflictError("This user is being deleted.", code="user_leaving")
        changed = await users.set_flags(session, user_id, is_active=patch.is_active, is_superuser=patch.is_superuser)
        if has_budget:
            changed = await users.set_monthly_budget(session, user_id, patch.monthly_budget_usd)
            await model_keys.mark_stale(session, user_id)
            waiting = await model_ledger.paused_for(session, user_id, limit=_NUDGED_AT_ONCE)
        if not changed.is_active:
            await credentials.revoke_sessions(session, user_id)
            await model_keys.empty(session, user_id)
    if has_budget or patch.is_active is not None:
        await begin_onboarding(services, user_id)
    await _nudge(services, waiting)
    return changed


async def delete_user(services: Services, user_id: int) -> UserRecord:
    """Shut the user out at once, and have all that is theirs removed. Raises `NotFoundError`."""
    async with services.database.transaction() as session:
        leaving = await users.leave(session, user_id)
        await credentials.revoke_sessions(session, user_id)
        await model_keys.empty(session, user_id)
    try:
        await start_offboard_user(await services.temporal.client(), OffboardInput(user_id=user_id))
    except (UnavailableError, RPCError) as error:
        _log.warning("deletion put off", user_id=user_id, reason=str(error)[:200])
    return leaving


async def rotate_model_key(services: Services, user_id: int) -> None:
    """Have the user's key replaced. Raises `NotFoundError`."""
    async with services.database.transaction() as session:
        await users.get(session, user_id)
        await model_keys.empty(session, user_id)
    await begin_onboarding(services, user_id)


async def _nudge(services: Services, tasks: list[UUID]) -> None:
    """Have tasks look at the budget they wait for. Never fails: the row stands."""
    try:
        for task_id in tasks:
            await nudge_agent_task(await services.temporal.client(), str(task_id))
    except (UnavailableError, RPCError) as error:
        _log.warning("tasks not told of their budget", tasks=len(tasks), reason=str(error)[:200])
