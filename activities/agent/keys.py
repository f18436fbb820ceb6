"""The model and the key that a task's calls are made with."""

import contextlib
from datetime import timedelta
from typing import Final
from uuid import UUID

from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from storage import model_keys
from storage.engine import Database
from storage.model_keys import Caller
from storage.secret_box import SecretBox
from workflows.contracts.agent_tasks import TaskStepInput
from workflows.contracts.onboarding import OnboardInput
from workflows.contracts.starts import start_onboard_user

_LOOK_AGAIN: Final = timedelta(seconds=1)


class UserKeys:
    """Finds users' keys at the proxy. `is_kept` False: there is no proxy, and calls are made with the service's own."""

    def __init__(self, database: Database, client: Client, secrets: SecretBox, *, is_kept: bool) -> None:
        self._database = database
        self._client = client
        self._secrets = secrets
        self._is_kept = is_kept

    async def caller(self, step: TaskStepInput) -> Caller | None:
        """Model and key of the task; None when it is gone.

        Raises `ApplicationError`: `user_disabled`, not retried; `model_key_pending`, retried, while the key is made or
        the proxy hears of another budget.
        """
        caller = await model_keys.caller(self._database, UUID(step.task_id), self._secrets)
        if caller is None:
            return None
        if not caller.is_active:
            raise ApplicationError("The account is disabled.", type="user_disabled", non_retryable=True)
        if self._is_kept and caller.key is None:
            with contextlib.suppress(RPCError):  # the next attempt asks again, and so does `Reconcile`
                await start_onboard_user(self._client, OnboardInput(user_id=step.user_id))
            raise ApplicationError(
                "The user's key at the model proxy is still being made or changed.",
                type="model_key_pending",
                next_retry_delay=_LOOK_AGAIN,
            )
        return caller
