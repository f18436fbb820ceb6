"""What models there are, and what the caller's own calls came to."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import httpx
import pytest
from uuid6 import uuid7

from activities.language_models.openai_compatible import ModelServer, OpenAICompatibleModel
from activities.ports import LanguageModel
from storage import model_ledger
from storage.engine import Database
from storage.model_ledger import Reservation
from tests.api.stand import Account, register
from tests.language_models.servers import serving
from workers.scripted_model.app import create_app


@pytest.fixture
async def models() -> AsyncIterator[LanguageModel]:
    """The scripted models, as a provider without prices of its own."""
    async with serving(create_app()) as address:
        prices = (Decimal("0.001"), Decimal("0.002"))
        yield OpenAICompatibleModel(ModelServer(f"{address}/v1", default_model="scripted", prices=prices))


async def spend(database: Database, user_id: int, model: str, cost: str) -> None:
    async with database.transaction() as session:
        call = Reservation(uuid7(), user_id, model, Decimal(1), project_id=None)
        await model_ledger.reserve(session, call, default_monthly_usd=None)
        await model_ledger.settle(session, call.id, input_tokens=3, output_tokens=2, cost_usd=Decimal(cost))


async def test_models_are_listed_with_their_prices_and_which_is_the_default(
    client: httpx.AsyncClient, account: Account
) -> None:
    listed = (await client.get("/api/models", headers=account.headers)).json()
    assert [(item["id"], item["default"]) for item in listed["items"]] == [("demo", False), ("scripted", True)]
    assert listed["items"][0]["input_price"] == 0.001
    assert listed["items"][0]["output_price"] == 0.002
    assert (await client.get("/api/models")).status_code == 401


async def test_usage_is_one_s_own_in_pages_with_the_month_s_sum(
    client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    other = await register(client)
    for user_id, model, cost in (
        (account.user_id, "a", "0.5"),
        (account.user_id, "b", "0.25"),
        (other.user_id, "a", "9"),
    ):
        await spend(database, user_id, model, cost)
    first = (await client.get("/api/usage", params={"limit": 1}, headers=account.headers)).json()
    assert (first["month_cost_usd"], first["budget_usd"]) == (0.75, None)
    second = (
        await client.get("/api/usage", params={"limit": 1, "cursor": first["next_cursor"]}, headers=account.headers)
    ).json()
    day = datetime.now(UTC).date().isoformat()
    shown = {"day": day, "project_id": None, "calls": 1, "input_tokens": 3, "output_tokens": 2}
    assert first["items"] == [{**shown, "model": "a", "cost_usd": 0.5}]
    assert second["items"] == [{**shown, "model": "b", "cost_usd": 0.25}]
    assert second["next_cursor"] is None


async def test_since_is_a_day_or_a_moment_of_the_last_year(
    client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    await spend(database, account.user_id, "a", "1")
    now = datetime.now(UTC)

    async def ask(since: str) -> httpx.Response:
        return await client.get("/api/usage", params={"since": since}, headers=account.headers)

    assert len((await ask(now.date().isoformat())).json()["items"]) == 1
    assert (await ask((now + timedelta(hours=1)).isoformat())).json()["items"] == []
    assert (await ask((now - timedelta(days=400)).date().isoformat())).json()["code"] == "bad_since"
    assert (await ask("yesterday")).status_code == 422
