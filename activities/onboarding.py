"""The effects of an onboarding: the proxy has the key that the user's row asks for, and the row has it encrypted."""

from decimal import Decimal

import structlog
from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.ports import ModelKeys
from activities.working import working
from storage import model_keys, users
from storage.engine import Database
from storage.model_keys import KeyState
from storage.secret_box import SecretBox
from storage.users import UserRecord
from workflows.contracts.errors import NotFoundError
from workflows.contracts.onboarding import OnboardingActivities, OnboardInput

log = structlog.get_logger()


class Onboarding(OnboardingActivities):
    """Onboarding activities over the database and the proxy. `keys` None: there is no proxy, so nothing is to do.

    `default_budget_usd`: the month's, of users who have none of their own; None: unbounded.
    """

    def __init__(
        self, database: Database, keys: ModelKeys | None, secrets: SecretBox, *, default_budget_usd: Decimal | None
    ) -> None:
        self._database = database
        self._keys = keys
        self._secrets = secrets
        self._default_budget_usd = default_budget_usd

    @activity.defn(name="align_model_key")
    async def align_model_key(self, user: OnboardInput) -> None:
        """See `OnboardingActivities`."""
        if self._keys is None:
            return
        async with working():
            record, state = await self._read(user.user_id)
            if record is None or not record.is_active:
                await self._revoke(self._keys, user.user_id, state)
            elif not state.usable:
                await self._make(self._keys, record, state)
            elif state.is_stale:
                await self._tell_budget(self._keys, record, state)

    async def _read(self, user_id: int) -> tuple[UserRecord | None, KeyState]:
        async with self._database.transaction() as session:
            # The key before its user: a change after this look raises the version, and the look is repeated.
            state = await model_keys.state_of(session, user_id, self._secrets)
            try:
                return await users.get(session, user_id), state
            except NotFoundError:
                return None, state

    async def _revoke(self, keys: ModelKeys, user_id: int, state: KeyState) -> None:
        await keys.revoke(user_id)
        async with self._database.transaction() as session:
            await model_keys.remove(session, user_id, version=state.version)

    async def _make(self, keys: ModelKeys, user: UserRecord, state: KeyState) -> None:
        key = await keys.create(user.id, budget_usd=self._budget(user))
        async with self._database.transaction() as session:
            now = await users.lock(session, user.id)
            if now is None or not now.is_active:
                raise _changed_meanwhile()
            is_stale = self._budget(now) != self._budget(user)
            if await model_keys.store(
                session, user.id, key, self._secrets, after_version=state.version, is_stale=is_stale
            ):
                log.info("model_key.made", user_id=user.id, version=state.version + 1)
                return
            # Another attempt has made one, too, and only the proxy knows whose it kept: neither is used.
            await model_keys.empty(session, user.id)
        raise _changed_meanwhile()

    async def _tell_budget(self, keys: ModelKeys, user: UserRecord, state: KeyState) -> None:
        await keys.set_budget(user.id, self._budget(user))
        async with self._database.transaction() as session:
            await model_keys.mark_told(session, user.id, version=state.version)

    def _budget(self, user: UserRecord) -> Decimal | None:
        return self._default_budget_usd if user.monthly_budget_usd is None else user.monthly_budget_usd


def _changed_meanwhile() -> ApplicationError:
    return ApplicationError("The user's row has changed meanwhile; looking again.", type="changed_meanwhile")
