"""Users' keys at the proxy: what the rows say is what the proxy has, whatever fails and whoever is at it at once."""

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import cast
from uuid import uuid4

import pytest
from sqlalchemy import text
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.errors import ModelUnavailableError
from activities.onboarding import Onboarding
from activities.ports import Runtime
from activities.reconcile import Reconciliation
from storage import model_keys, task_requests, users
from storage.engine import Database
from storage.projects import ProjectRecord
from storage.secret_box import SecretBox
from storage.task_requests import NewTask
from tests.activities.test_reconcile import WorkflowsThatEndMeanwhile
from tests.storage.records import new_dev_server
from workflows.contracts.agent_tasks import ApprovalMode, OnBusy, TaskMode
from workflows.contracts.onboarding import OnboardInput
from workflows.contracts.reconcile import ReconcileInput

SECRETS = SecretBox("a secret of the tests, at least 32 bytes long")


class Proxy:
    """Keeps one key a user, as LiteLLM does by alias. `meanwhile`: what happens while a key is being made."""

    def __init__(self) -> None:
        self.keys: dict[int, str] = {}
        self.budgets: dict[int, Decimal | None] = {}
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def create(self, user_id: int, *, budget_usd: Decimal | None) -> str:
        self.keys[user_id] = f"sk-{uuid4()}"
        self.budgets[user_id] = budget_usd
        if self.meanwhile is not None:
            happens, self.meanwhile = self.meanwhile, None
            await happens()
        return self.keys[user_id]

    async def set_budget(self, user_id: int, budget_usd: Decimal | None) -> None:
        self.budgets[user_id] = budget_usd

    async def revoke(self, user_id: int) -> None:
        self.keys.pop(user_id, None)


class AbsentProxy(Proxy):
    """Doesn't answer."""

    async def create(self, user_id: int, *, budget_usd: Decimal | None) -> str:
        raise ModelUnavailableError("The proxy doesn't answer.")


@pytest.fixture
async def user_id(database: Database) -> int:
    async with database.transaction() as session:
        return (await users.create(session, email="ann@example.com", name=None, password_hash="")).id


async def align(database: Database, proxy: Proxy | None, user_id: int, default: Decimal | None = None) -> None:
    onboarding = Onboarding(database, proxy, SECRETS, default_budget_usd=default)
    await ActivityEnvironment().run(onboarding.align_model_key, OnboardInput(user_id=user_id))


async def key_of(database: Database, user_id: int, secrets: SecretBox = SECRETS) -> str | None:
    async with database.reading() as session:
        return await model_keys.key_of(session, user_id, secrets)


async def waiting(database: Database) -> list[int]:
    async with database.reading() as session:
        return await model_keys.users_to_onboard(session, limit=10)


async def shut_out(database: Database, user_id: int) -> None:
    async with database.transaction() as session:
        await users.set_flags(session, user_id, is_active=False)
        await model_keys.empty(session, user_id)


async def test_a_new_user_gets_one_key_which_is_kept_encrypted(database: Database, user_id: int) -> None:
    proxy = Proxy()
    assert await waiting(database) == [user_id]
    await align(database, proxy, user_id, Decimal(5))
    key = await key_of(database, user_id)
    await align(database, proxy, user_id, Decimal(5))

    assert key == proxy.keys[user_id] == await key_of(database, user_id)
    assert proxy.budgets == {user_id: Decimal(5)}
    assert await waiting(database) == []
    async with database.reading() as session:
        stored = await session.scalar(text("SELECT key_encrypted FROM model_keys"))
    assert key is not None
    assert key.encode() not in bytes(stored)


async def test_a_rotation_takes_the_old_key_away_at_once_and_brings_a_new_one(database: Database, user_id: int) -> None:
    proxy = Proxy()
    await align(database, proxy, user_id)
    old = await key_of(database, user_id)
    async with database.transaction() as session:
        await model_keys.empty(session, user_id)
    assert await key_of(database, user_id) is None
    assert await waiting(database) == [user_id]
    await align(database, proxy, user_id)

    assert await key_of(database, user_id) == proxy.keys[user_id] != old
    assert await waiting(database) == []


async def test_a_user_who_is_shut_out_has_no_key_and_gets_a_new_one_when_let_in_again(
    database: Database, user_id: int
) -> None:
    proxy = Proxy()
    await align(database, proxy, user_id)
    await shut_out(database, user_id)
    assert await key_of(database, user_id) is None
    assert await waiting(database) == [user_id]
    await align(database, proxy, user_id)
    assert proxy.keys == {}
    assert await waiting(database) == []

    async with database.transaction() as session:
        await users.set_flags(session, user_id, is_active=True)
    assert await waiting(database) == [user_id]
    await align(database, proxy, user_id)
    assert await key_of(database, user_id) == proxy.keys[user_id]


async def test_a_user_who_is_shut_out_while_their_key_is_made_keeps_none(database: Database, user_id: int) -> None:
    proxy = Proxy()
    proxy.meanwhile = lambda: shut_out(database, user_id)
    with pytest.raises(ApplicationError, match="meanwhile"):
        await align(database, proxy, user_id)
    assert await key_of(database, user_id) is None
    await align(database, proxy, user_id)
    assert proxy.keys == {}


async def test_of_two_attempts_at_once_neither_leaves_a_key_that_the_proxy_has_replaced(
    database: Database, user_id: int
) -> None:
    proxy = Proxy()
    proxy.meanwhile = lambda: align(database, proxy, user_id)
    with pytest.raises(ApplicationError, match="meanwhile"):
        await align(database, proxy, user_id)
    await align(database, proxy, user_id)
    assert await key_of(database, user_id) == proxy.keys[user_id]


async def test_a_changed_budget_reaches_the_proxy_also_when_it_changes_while_the_key_is_made(
    database: Database, user_id: int
) -> None:
    proxy = Proxy()

    async def change(budget: Decimal | None) -> None:
        async with database.transaction() as session:
            await users.set_monthly_budget(session, user_id, budget)
            await model_keys.mark_stale(session, user_id)

    proxy.meanwhile = lambda: change(Decimal(7))
    await align(database, proxy, user_id, Decimal(5))
    assert await waiting(database) == [user_id]
    await align(database, proxy, user_id, Decimal(5))
    assert proxy.budgets[user_id] == 7
    await change(None)
    key = await key_of(database, user_id)
    await align(database, proxy, user_id, Decimal(5))
    assert proxy.budgets[user_id] == 5
    assert await key_of(database, user_id) == key
    assert await waiting(database) == []


async def test_nobody_calls_under_a_budget_that_the_proxy_has_yet_to_hear_of(database: Database) -> None:
    """It would refuse by the old one, and the task that was to go on would pause again."""
    proxy, project = Proxy(), await new_dev_server(database)
    async with database.transaction() as session:
        task = (await task_requests.create(session, a_task_in(project))).task

    async def key() -> str | None:
        caller = await model_keys.caller(database, task.id, SECRETS)
        assert caller is not None
        return caller.key

    await align(database, proxy, project.user_id)
    assert await key() == proxy.keys[project.user_id]
    async with database.transaction() as session:
        await users.set_monthly_budget(session, project.user_id, Decimal(7))
        await model_keys.mark_stale(session, project.user_id)
    assert await key() is None
    await align(database, proxy, project.user_id)
    assert await key() == proxy.keys[project.user_id]
    assert proxy.budgets[project.user_id] == 7


def a_task_in(project: ProjectRecord) -> NewTask:
    return NewTask(
        user_id=project.user_id,
        project_id=project.id,
        chat_id=None,
        mode=TaskMode.AGENT,
        prompt="Do it.",
        model="any",
        tools=None,
        approval_mode=ApprovalMode.AUTO,
        max_steps=1,
        budget_usd=None,
        on_busy=OnBusy.REJECT,
    )


async def test_a_proxy_that_is_away_is_worth_another_try(database: Database, user_id: int) -> None:
    with pytest.raises(ApplicationError) as caught:
        await align(database, AbsentProxy(), user_id)
    assert not caught.value.non_retryable


async def test_without_a_proxy_there_is_nothing_to_do(database: Database, user_id: int) -> None:
    await align(database, None, user_id)
    assert await key_of(database, user_id) is None


async def test_reconcile_starts_what_is_missing_and_closes_keys_anew_after_a_change_of_the_secret(
    database: Database, user_id: int
) -> None:
    proxy = Proxy()
    await align(database, proxy, user_id)
    key = await key_of(database, user_id)
    async with database.transaction() as session:
        other = (await users.create(session, email="bob@example.com", name=None, password_hash="")).id
    new = "another secret of the tests, of 32 bytes and more"
    client = WorkflowsThatEndMeanwhile(database)
    reconciliation = Reconciliation(
        database,
        cast("Runtime", None),
        cast("Client", client),
        start_timeout_s=60,
        idle_grace_s=60,
        key_secrets=SecretBox(new, ("a secret of the tests, at least 32 bytes long",)),
    )
    report = await ActivityEnvironment().run(reconciliation.restart_lost_work, ReconcileInput())

    assert report.onboardings == [other]
    assert client.started == ["OnboardUser"]
    assert await key_of(database, user_id, SecretBox(new)) == key
    assert await key_of(database, user_id) is None


async def test_a_key_that_nothing_opens_is_made_anew(database: Database, user_id: int) -> None:
    proxy = Proxy()
    await align(database, proxy, user_id)
    other = SecretBox("another secret of the tests, of 32 bytes and more")
    async with database.transaction() as session:
        assert await model_keys.close_anew(session, other, limit=10) == 1
        assert await model_keys.close_anew(session, other, limit=10) == 0
    assert await waiting(database) == [user_id]
    await align(database, proxy, user_id)
    assert await key_of(database, user_id) == proxy.keys[user_id]


async def test_many_at_once_end_with_the_proxy_s_key(database: Database, user_id: int) -> None:
    proxy = Proxy()
    await asyncio.gather(*(align(database, proxy, user_id) for _ in range(5)), return_exceptions=True)
    await align(database, proxy, user_id)
    assert await key_of(database, user_id) == proxy.keys[user_id]
