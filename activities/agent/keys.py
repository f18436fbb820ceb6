"""The key that a user's model calls are made with."""

import contextlib
from datetime import timedelta
from typing import Final

from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from storage import model_keys, users
from storage.engine import Database
from storage.secret_box import SecretBox
from workflows.contracts.errors import NotFoundError
from workflows.contracts.onboarding import OnboardInput
from workflows.contracts.starts import start_onboard_user

_LOOK_AGAIN: Final = timedelta(seconds=1)


class UserKeys:
    """Finds users' keys at the proxy. `secrets` None: there is no proxy, and calls are made with the service's own."""

    def __init__(self, database: Database, client: Client, secrets: SecretBox | None) -> None:
        self._database = database
        self._client = client
        self._secrets = secrets

    async def key_of(self, user_id: int) -> str | None:
        """The user's key; None: the service's own is used.

        Raises `ApplicationError`: `user_disabled`, not retried; `model_key_pending`, retried, when it is being made.
        """
        async with self._database.reading() as session:
            try:
                active = (await users.get(session, user_id)).is_active
            except NotFoundError:
                active = False
            if not active:
                raise ApplicationError("The account is disabled.", type="user_disabled", non_retryable=True)
            if self._secrets is None:
                return None
            key = await model_keys.key_of(session, user_id, self._secrets)
        if key is not None:
            return key
        with contextlib.suppress(RPCError):  # the next attempt asks again, and so does `Reconcile`
            await start_onboard_user(self._client, OnboardInput(user_id=user_id))
        raise ApplicationError(
            "The user's key at the model proxy is still being made.",
            type="model_key_pending",
            next_retry_delay=_LOOK_AGAIN,
        )
