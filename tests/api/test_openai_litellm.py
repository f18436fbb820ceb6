"""`/v1` over the real LiteLLM proxy: each user calls with a key of their own, which `OnboardUser` keeps."""

import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any
from uuid import uuid4

import httpx
import pytest
from temporalio.testing import ActivityEnvironment

from activities.language_models.open import ModelSettings, open_chat_completions, open_language_model
from activities.onboarding import Onboarding
from activities.ports import ChatCompletions, LanguageModel
from api.services import ApiConfig
from storage import model_keys, users
from storage.engine import Database
from storage.secret_box import SecretBox
from tests.api import conftest
from tests.api.stand import Account
from tests.api.test_openai import COMPLETIONS, asking, calls, chunks_of
from tests.litellm import INPUT_PRICE, OUTPUT_PRICE, LiteLLMProxy, litellm_proxy
from workflows.contracts.onboarding import OnboardInput

__all__ = ["litellm_proxy"]  # a fixture

pytestmark = [pytest.mark.litellm, pytest.mark.slow]

SECRETS = SecretBox(conftest.SECRET_KEY)
SAID = {"text": "hello", "usage": {"input": 1000, "output": 50}, "pieces_per_s": 0}
COST = 1000 * Decimal(str(INPUT_PRICE)) + 50 * Decimal(str(OUTPUT_PRICE))


@pytest.fixture
def settings(litellm_proxy: LiteLLMProxy) -> ModelSettings:
    return ModelSettings(
        uuid4().hex[:12], litellm_api_base=litellm_proxy.base_url, litellm_master_key=litellm_proxy.master_key
    )


@pytest.fixture
def config() -> ApiConfig:
    return ApiConfig(
        secret_key=conftest.SECRET_KEY,
        public_url="http://localhost:8000",
        preview_domain="localhost",
        preview_port=8080,
        users_have_model_keys=True,
    )


@pytest.fixture
async def models(settings: ModelSettings) -> AsyncIterator[LanguageModel]:
    async with open_language_model(settings) as (model, _):
        yield model


@pytest.fixture
async def completions(settings: ModelSettings) -> AsyncIterator[ChatCompletions]:
    async with open_chat_completions(settings) as opened:
        yield opened


async def onboard(database: Database, settings: ModelSettings, user_id: int) -> str | None:
    """What a worker would do; gives the key."""
    async with open_language_model(settings) as (_, keys):
        onboarding = Onboarding(database, keys, SECRETS, default_budget_usd=Decimal(5))
        await ActivityEnvironment().run(onboarding.align_model_key, OnboardInput(user_id=user_id))
    async with database.reading() as session:
        return await model_keys.key_of(session, user_id, SECRETS)


async def ask(client: httpx.AsyncClient, account: Account, **fields: Any) -> httpx.Response:
    return await client.post(COMPLETIONS, json={**asking(SAID), **fields}, headers=account.headers)


async def test_a_user_s_own_key_is_made_used_replaced_and_revoked(
    client: httpx.AsyncClient,
    account: Account,
    database: Database,
    settings: ModelSettings,
    litellm_proxy: LiteLLMProxy,
) -> None:
    waiting = await ask(client, account)
    assert (waiting.status_code, waiting.json()["error"]["type"]) == (503, "server_error")
    assert await calls(database) == []

    key = await onboard(database, settings, account.user_id)
    assert (await ask(client, account)).status_code == 200
    *chunks, end = await chunks_of(client, account, asking(SAID, stream=True))
    assert end == "[DONE]"
    assert not any("usage" in chunk for chunk in chunks)
    assert "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]) == "hello"
    assert [(row.cost_usd, row.estimated) for row in await calls(database)] == [(COST, False)] * 2

    async with database.transaction() as session:
        await model_keys.empty(session, account.user_id)
    assert (await ask(client, account)).status_code == 503
    newer = await onboard(database, settings, account.user_id)
    assert newer not in {key, None}
    assert (await ask(client, account)).status_code == 200
    assert await status_with(litellm_proxy, key) == 401

    async with database.transaction() as session:
        await users.set_flags(session, account.user_id, is_active=False)
        await model_keys.empty(session, account.user_id)
    assert await onboard(database, settings, account.user_id) is None
    assert await status_with(litellm_proxy, newer) == 401


async def status_with(proxy: LiteLLMProxy, key: str | None) -> int:
    async with httpx.AsyncClient(base_url=proxy.base_url, trust_env=False, timeout=30) as client:
        headers = {"Authorization": f"Bearer {key}"}
        return (await client.post("/v1/chat/completions", json=asking(SAID), headers=headers)).status_code


async def test_the_proxy_s_refusals_have_openai_s_errors(
    client: httpx.AsyncClient, account: Account, database: Database, settings: ModelSettings
) -> None:
    await onboard(database, settings, account.user_id)

    async def refusal(body: dict[str, Any]) -> tuple[int, str | None]:
        answer = await client.post(COMPLETIONS, json=body, headers=account.headers)
        return answer.status_code, answer.json()["error"]["code"]

    assert await refusal({**asking(SAID), "model": "unknown"}) == (404, "model_not_found")
    assert await refusal({**asking(SAID), "model": "gone"}) == (503, "model_unavailable")
    limited = {"steps": [SAID], "context_limit": 1}
    message = {"role": "user", "content": f"<script>{json.dumps(limited)}</script>"}
    assert await refusal({"model": "scripted", "messages": [message]}) == (400, "context_length_exceeded")
    assert await refusal(asking({"text": "x", "fail": {"status": 429, "times": 9999}})) == (429, "rate_limit_exceeded")
    assert await calls(database) == []


async def test_a_key_that_the_proxy_has_lost_is_refused_without_cost(
    client: httpx.AsyncClient, account: Account, database: Database, settings: ModelSettings
) -> None:
    await onboard(database, settings, account.user_id)
    async with open_language_model(settings) as (_, keys):
        assert keys is not None
        await keys.revoke(account.user_id)
    answer = await ask(client, account)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_key_refused")
    assert await calls(database) == []
