"""Having `OnboardUser` look at a changed user: best effort, after the commit; `Reconcile` does the rest."""

import structlog
from temporalio.service import RPCError

from api.services import Services
from workflows.contracts.errors import UnavailableError
from workflows.contracts.onboarding import OnboardInput
from workflows.contracts.starts import start_onboard_user

_log = structlog.get_logger("api.onboarding")


async def begin_onboarding(services: Services, user_id: int, *, changed: bool = True) -> None:
    """Have the proxy told of the user. Never fails: the row stands, and is looked at again every minute.

    `changed` False: a key is missing, so one that is being made already is all that is wanted.
    """
    if not services.config.users_have_model_keys:
        return
    try:
        await start_onboard_user(await services.temporal.client(), OnboardInput(user_id=user_id), changed=changed)
    except (UnavailableError, RPCError) as error:
        _log.warning("onboarding put off", user_id=user_id, reason=str(error)[:200])
