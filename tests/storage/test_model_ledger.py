"""Money: what is reserved, settled and refused, with many calls at once and makers that die."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from uuid6 import uuid7

from storage import model_ledger
from storage.engine import Database
from storage.model_ledger import Admission, Reservation
from tests.storage.records import new_project
from workflows.contracts.errors import NotFoundError

CENT = Decimal("0.01")
CALL = Decimal("0.004")


async def new_user(database: Database) -> int:
    async with database.transaction() as session:
        user_id = await session.scalar(
            text("INSERT INTO users (email, password_hash) VALUES (:email, '') RETURNING id"),
            {"email": f"{uuid4()}@example.com"},
        )
        return int(user_id or 0)


async def new_task(database: Database, user_id: int, *, budget: Decimal | None = None, state: str = "running") -> UUID:
    project_id = await new_project(database, user_id)
    chat_id, task_id = uuid7(), uuid7()
    async with database.transaction() as session:
        await session.execute(
            text("INSERT INTO chats (id, project_id, user_id, title) VALUES (:chat, :project, :user, '')"),
            {"chat": chat_id, "project": project_id, "user": user_id},
        )
        await session.execute(
            text(
                "INSERT INTO agent_tasks (id, user_id, project_id, chat_id, mode, prompt, prompt_seq, model,"
                " approval_mode, max_steps, budget_usd, state)"
                " VALUES (:id, :user, :project, :chat, 'agent', 'p', 1, 'm', 'auto', 50, :budget, :state)"
            ),
            {
                "id": task_id,
                "user": user_id,
                "project": project_id,
                "chat": chat_id,
                "budget": budget,
                "state": state,
            },
        )
    return task_id


def wanted(user_id: int, task_id: UUID | None = None, estimate: Decimal = CALL) -> Reservation:
    return Reservation(uuid7(), user_id, "m", estimate, task_id=task_id, input_usd=estimate / 4)


async def reserve(database: Database, call: Reservation, monthly: Decimal | None = None) -> Admission:
    async with database.transaction() as session:
        return await model_ledger.reserve(session, call, default_monthly_usd=monthly)


async def settle(database: Database, call_id: UUID, cost: Decimal = CALL) -> bool:
    async with database.transaction() as session:
        return await model_ledger.settle(session, call_id, input_tokens=100, output_tokens=10, cost_usd=cost)


async def number(database: Database, query: str, **values: object) -> Decimal:
    async with database.reading() as session:
        return Decimal(await session.scalar(text(query), values) or 0)


async def calls_until_refused(database: Database, user_id: int, task_id: UUID | None, monthly: Decimal | None) -> str:
    """One task's life: calls, one after the other, until a budget says no."""
    while True:
        call = wanted(user_id, task_id)
        admission = await reserve(database, call, monthly)
        if admission is Admission.ADMITTED:
            await asyncio.sleep(0.001)
            await settle(database, call.id)
        elif admission is Admission.WAIT:
            await asyncio.sleep(0.005)
        else:
            return admission


async def test_twenty_tasks_at_once_overshoot_their_user_s_budget_by_less_than_one_call(database: Database) -> None:
    user_id = await new_user(database)
    tasks = [await new_task(database, user_id) for _ in range(20)]
    async with asyncio.timeout(60):
        ends = await asyncio.gather(*(calls_until_refused(database, user_id, task, CENT) for task in tasks))

    assert set(ends) == {Admission.USER_BUDGET}
    spent = await number(database, "SELECT sum(cost_usd) FROM model_calls")
    assert CENT <= spent < CENT + CALL
    assert await number(database, "SELECT sum(cost_usd) FROM agent_tasks") == spent
    assert await number(database, "SELECT count(*) FROM model_calls WHERE settled_at IS NULL") == 0


async def test_a_task_s_own_budget_is_overshot_by_less_than_one_call_however_many_call_for_it(
    database: Database,
) -> None:
    user_id = await new_user(database)
    task_id = await new_task(database, user_id, budget=CENT)
    async with asyncio.timeout(60):
        ends = await asyncio.gather(*(calls_until_refused(database, user_id, task_id, None) for _ in range(20)))

    assert set(ends) == {Admission.TASK_BUDGET}
    spent = await number(database, "SELECT cost_usd FROM agent_tasks WHERE id = :id", id=task_id)
    assert CENT <= spent < CENT + CALL


async def test_only_one_call_over_what_is_left_is_admitted_and_others_wait_for_it(database: Database) -> None:
    user_id = await new_user(database)
    first, second = wanted(user_id, estimate=Decimal(1)), wanted(user_id)

    assert await reserve(database, first, CENT) is Admission.ADMITTED
    assert await reserve(database, second, CENT) is Admission.WAIT
    await settle(database, first.id)
    assert await reserve(database, second, CENT) is Admission.ADMITTED


async def test_the_user_s_own_budget_goes_before_the_default_and_a_raised_one_counts_at_once(
    database: Database,
) -> None:
    user_id = await new_user(database)
    await number(database, "UPDATE users SET monthly_budget_usd = 0 WHERE id = :id RETURNING 0", id=user_id)
    assert await reserve(database, wanted(user_id, estimate=Decimal(0)), None) is Admission.USER_BUDGET
    await number(database, "UPDATE users SET monthly_budget_usd = 1 WHERE id = :id RETURNING 0", id=user_id)
    assert await reserve(database, wanted(user_id), Decimal(0)) is Admission.ADMITTED


async def test_last_month_s_calls_are_paid(database: Database) -> None:
    user_id = await new_user(database)
    call = wanted(user_id)
    await reserve(database, call, CENT)
    await settle(database, call.id, Decimal(5))
    assert await reserve(database, wanted(user_id), CENT) is Admission.USER_BUDGET
    await number(
        database,
        "UPDATE model_calls SET at = date_trunc('month', now(), 'UTC') - interval '1 second' RETURNING 0",
    )
    assert await reserve(database, wanted(user_id), CENT) is Admission.ADMITTED


async def test_the_same_call_is_reserved_and_settled_once(database: Database) -> None:
    user_id = await new_user(database)
    task_id = await new_task(database, user_id, budget=CENT)
    call = wanted(user_id, task_id, estimate=CENT)
    assert await asyncio.gather(*(reserve(database, call) for _ in range(4))) == [Admission.ADMITTED] * 4
    assert await number(database, "SELECT count(*) FROM model_calls") == 1

    assert sorted(await asyncio.gather(*(settle(database, call.id) for _ in range(4)))) == [False, False, False, True]
    assert await settle(database, call.id, Decimal(9)) is False
    assert await number(database, "SELECT cost_usd FROM agent_tasks") == CALL
    assert await number(database, "SELECT input_tokens FROM agent_tasks") == 100
    assert await settle(database, uuid7()) is False


async def test_a_released_call_leaves_no_trace_and_a_settled_one_cannot_be_released(database: Database) -> None:
    user_id = await new_user(database)
    refused, paid = wanted(user_id), wanted(user_id)
    for call in (refused, paid):
        await reserve(database, call)
    await settle(database, paid.id)
    async with database.transaction() as session:
        await model_ledger.release(session, refused.id)
        await model_ledger.release(session, paid.id)

    assert await number(database, "SELECT sum(cost_usd) FROM model_calls") == CALL
    assert await settle(database, refused.id) is False


async def test_a_call_whose_maker_died_is_settled_at_its_prompt_by_the_next_attempt(database: Database) -> None:
    user_id = await new_user(database)
    task_id = await new_task(database, user_id, budget=CENT)
    lost, again = wanted(user_id, task_id, estimate=CENT), wanted(user_id, task_id, estimate=CENT)
    await reserve(database, lost)
    assert await reserve(database, again) is Admission.WAIT  # nobody will settle it but who comes next

    async with database.transaction() as session:
        await model_ledger.settle_lost(session, task_id, keep=again.id)
    assert await reserve(database, again) is Admission.ADMITTED
    async with database.transaction() as session:
        await model_ledger.settle_lost(session, task_id, keep=again.id)

    assert await number(database, "SELECT cost_usd FROM agent_tasks") == CENT / 4
    assert await number(database, "SELECT count(*) FROM model_calls WHERE estimated") == 1
    assert await settle(database, lost.id) is False  # its answer came after all, too late
    assert await settle(database, again.id) is True


async def test_an_old_call_is_forgotten_unless_its_task_goes_on(database: Database) -> None:
    user_id = await new_user(database)
    tasks = {state: await new_task(database, user_id, state=state) for state in ("running", "completed")}
    calls = [wanted(user_id, task) for task in (None, *tasks.values())]
    gone = wanted(user_id, tasks["completed"])
    young = wanted(user_id)
    for call in (*calls, gone, young):
        await reserve(database, call)
    await number(
        database, "UPDATE model_calls SET at = now() - interval '2 h' WHERE id <> :id RETURNING 0", id=young.id
    )
    await number(database, "UPDATE model_calls SET task_id = :no WHERE id = :id RETURNING 0", no=uuid7(), id=gone.id)
    async with database.transaction() as session:
        assert await model_ledger.settle_forgotten(session) == 3

    async with database.reading() as session:
        still_open = set(await session.scalars(text("SELECT id FROM model_calls WHERE settled_at IS NULL")))
    assert still_open == {calls[1].id, young.id}


async def test_usage_is_told_by_day_project_and_model_to_nobody_else(database: Database) -> None:
    ann, bob = await new_user(database), await new_user(database)
    for user_id, model in ((ann, "a"), (ann, "a"), (ann, "b"), (bob, "a")):
        call = Reservation(uuid7(), user_id, model, CALL, project_id=7 if model == "a" else None)
        await reserve(database, call)
        await settle(database, call.id)
    await reserve(database, wanted(ann))
    since = datetime.now(UTC) - timedelta(days=1)
    async with database.reading() as session:
        rows = await model_ledger.usage_by_day(session, ann, since, limit=10)
        second = await model_ledger.usage_by_day(session, ann, since, limit=10, offset=1)
        later = await model_ledger.usage_by_day(session, ann, datetime.now(UTC) + timedelta(hours=1), limit=10)

    assert [
        (row.project_id, row.model, row.calls, row.input_tokens, row.output_tokens, row.cost_usd) for row in rows
    ] == [
        (7, "a", 2, 200, 20, 2 * CALL),
        (None, "b", 1, 100, 10, CALL),
    ]
    assert second == rows[1:]
    assert later == []


async def test_a_call_of_a_user_or_a_task_that_is_gone_is_refused(database: Database) -> None:
    with pytest.raises(NotFoundError):
        await reserve(database, wanted(12345))
    with pytest.raises(NotFoundError):
        await reserve(database, wanted(await new_user(database), uuid7()))
