import asyncio
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any
from uuid import uuid4

import httpx
import pytest

from activities.errors import (
    ContextOverflowError,
    ModelBudgetError,
    ModelFault,
    ModelKeyRefusedError,
    ModelMissingError,
    ModelQuotaError,
    ModelRefusedError,
    ModelThrottledError,
    ModelUnavailableError,
)
from activities.language_models.keys import LiteLLMKeys
from activities.language_models.open import ModelSettings, open_language_model
from activities.language_models.openai_compatible import OpenAICompatibleModel
from activities.ports import ModelInfo, ModelRequest, ToolSchema
from tests.api.stand import free_port
from tests.language_models.servers import listen, request, script
from tests.litellm import INPUT_PRICE, OUTPUT_PRICE, LiteLLMProxy
from workflows.contracts.names import model_key_alias

pytestmark = [pytest.mark.litellm, pytest.mark.slow]

TOOL = ToolSchema("read_file", "Reads", {"type": "object", "properties": {"path": {"type": "string"}}})


@pytest.fixture
def instance() -> str:
    """A name that no other test has: the proxy is shared."""
    return uuid4().hex[:12]


@pytest.fixture
async def opened(
    litellm_proxy: LiteLLMProxy, instance: str
) -> AsyncIterator[tuple[OpenAICompatibleModel, LiteLLMKeys]]:
    settings = ModelSettings(
        instance, litellm_api_base=litellm_proxy.base_url, litellm_master_key=litellm_proxy.master_key
    )
    async with open_language_model(settings) as (model, keys):
        assert isinstance(model, OpenAICompatibleModel)
        assert isinstance(keys, LiteLLMKeys)
        yield model, keys
        await keys.revoke(1)


@pytest.fixture
def model(opened: tuple[OpenAICompatibleModel, LiteLLMKeys]) -> OpenAICompatibleModel:
    return opened[0]


@pytest.fixture
def keys(opened: tuple[OpenAICompatibleModel, LiteLLMKeys]) -> LiteLLMKeys:
    return opened[1]


async def fault_of(model: OpenAICompatibleModel, asked: ModelRequest) -> ModelFault:
    with pytest.raises(ModelFault) as caught:
        await listen(model, asked)
    return caught.value


async def test_text_calls_usage_and_cost_come_through_with_a_users_key(
    model: OpenAICompatibleModel, keys: LiteLLMKeys
) -> None:
    key = await keys.create(1, budget_usd=Decimal(5))
    said = {
        "text": "I look — 你好",
        "calls": [{"name": "read_file", "arguments": {"path": f"{n}.txt"}} for n in range(3)],
        "usage": {"input": 1000, "output": 50},
    }
    text, end = await listen(model, request(script(said), tools=(TOOL,), key=key))
    assert (text, end.finish_reason) == ("I look — 你好", "tool_calls")
    assert [json.loads(call.arguments) for call in end.tool_calls] == [{"path": f"{n}.txt"} for n in range(3)]
    assert end.usage is not None
    assert (end.usage.input_tokens, end.usage.output_tokens) == (1000, 50)
    assert end.usage.cost_usd is not None
    assert float(end.usage.cost_usd) == pytest.approx(1000 * INPUT_PRICE + 50 * OUTPUT_PRICE)


async def test_models_come_with_their_prices_and_bounds(model: OpenAICompatibleModel) -> None:
    await model.ready()
    found = {info.id: info for info in await model.models()}
    prices = (Decimal(str(INPUT_PRICE)), Decimal(str(OUTPUT_PRICE)))
    assert found["scripted"] == ModelInfo("scripted", *prices, 100_000)
    assert found["free"].calls_tools is False
    assert model.default_model == "scripted"


QUOTA = {"error": {"message": "You exceeded your current quota, please check your plan", "code": "insufficient_quota"}}


@pytest.mark.parametrize(
    ("fail", "kind"),
    [
        ({"status": 400}, ModelRefusedError),
        ({"status": 401}, ModelKeyRefusedError),
        ({"status": 404}, ModelMissingError),
        ({"status": 408}, ModelUnavailableError),
        # The proxy itself asks again after a 422, and falls over the second one.
        ({"status": 422}, ModelUnavailableError),
        ({"status": 429, "headers": {"retry-after": "7"}}, ModelThrottledError),
        ({"status": 429, "body": QUOTA}, ModelQuotaError),
        ({"status": 500}, ModelUnavailableError),
        ({"status": 503, "headers": {"retry-after": "7"}}, ModelUnavailableError),
        ({"drop_after": 0}, ModelUnavailableError),
        ({"drop_after": 30}, ModelUnavailableError),
        ({"error_after": 3}, ModelUnavailableError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "-".join(map(str, value))[:20],
)
async def test_what_the_provider_does_is_classed(
    model: OpenAICompatibleModel, instance: str, fail: dict[str, Any], kind: type[ModelFault]
) -> None:
    text = "one two three four five six seven eight nine ten " * 4
    asked = script({"text": text, "pieces_per_s": 200, "fail": {**fail, "times": 5}}, key=instance)
    fault = await fault_of(model, request(asked))
    assert type(fault) is kind
    assert fault.retry_after == (7 if "headers" in fail else None)
    assert "one two" not in str(fault)


async def test_the_proxys_own_refusals_are_classed(model: OpenAICompatibleModel) -> None:
    assert type(await fault_of(model, request("hi", model="nobody"))) is ModelMissingError
    assert type(await fault_of(model, request("hi", model="gone"))) is ModelUnavailableError
    refused = await fault_of(model, request("hi", key="sk-never-given-out"))
    assert type(refused) is ModelKeyRefusedError
    assert "sk-" not in str(refused)
    assert "token" not in str(refused).lower()


async def test_a_conversation_that_is_too_long_is_an_overflow(model: OpenAICompatibleModel) -> None:
    asked = script({"text": "x"}, context_limit=2)
    assert type(await fault_of(model, request(asked))) is ContextOverflowError


async def test_the_proxy_doesnt_try_again_by_itself(
    model: OpenAICompatibleModel, litellm_proxy: LiteLLMProxy, instance: str
) -> None:
    for status in (429, 500):
        key = f"{instance}-{status}"
        await fault_of(model, request(script({"text": "x", "fail": {"status": status, "times": 5}}, key=key)))
        async with httpx.AsyncClient() as client:
            calls = (await client.get(f"{litellm_proxy.models_url}/calls")).json()["calls"]
        assert calls[f"{key}/0"]["begun"] == 1
        text, _ = await listen(model, request("the model isn't cooling down"))
        assert text


async def test_a_key_made_twice_is_one_key(
    model: OpenAICompatibleModel, keys: LiteLLMKeys, litellm_proxy: LiteLLMProxy, instance: str
) -> None:
    first = await keys.create(1, budget_usd=Decimal(5))
    second = await keys.create(1, budget_usd=None)
    assert first != second
    assert type(await fault_of(model, request("hi", key=first))) is ModelKeyRefusedError
    assert (await listen(model, request("hi", key=second)))[0]
    alias = model_key_alias(instance, 1)
    headers = {"Authorization": f"Bearer {litellm_proxy.master_key}"}
    async with httpx.AsyncClient(base_url=litellm_proxy.base_url, headers=headers) as client:
        listed = (await client.get("/key/list", params={"key_alias": alias})).json()
    assert len(listed["keys"]) == 1


async def test_keys_made_at_once_are_removed_together(model: OpenAICompatibleModel, keys: LiteLLMKeys) -> None:
    """The proxy doesn't hold its aliases unique when several calls come at once; all are found by it all the same."""
    made = await asyncio.gather(*(keys.create(1, budget_usd=None) for _ in range(3)), return_exceptions=True)
    given = [key for key in made if isinstance(key, str)]
    assert given
    assert all(isinstance(key, str | ModelUnavailableError) for key in made)
    await keys.revoke(1)
    for key in given:
        assert type(await fault_of(model, request("hi", key=key))) is ModelKeyRefusedError


async def test_a_users_key_is_for_models_alone(keys: LiteLLMKeys, litellm_proxy: LiteLLMProxy) -> None:
    key = await keys.create(1, budget_usd=None)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=litellm_proxy.base_url, headers=headers) as client:
        assert (await client.get("/v1/models")).status_code == 200
        for path in ("/key/generate", "/key/update", "/user/new"):
            assert (await client.post(path, json={"key": key, "max_budget": 1000})).status_code in {401, 403}, path


async def test_a_spent_budget_is_said_and_can_be_raised(model: OpenAICompatibleModel, keys: LiteLLMKeys) -> None:
    key = await keys.create(1, budget_usd=Decimal("0.001"))
    asked = request(script({"text": "x", "usage": {"input": 1000, "output": 1}}), key=key, max_output_tokens=10)
    await listen(model, asked)
    async with asyncio.timeout(60):
        while True:
            try:
                await listen(model, asked)
            except ModelBudgetError as fault:
                assert "sk-" not in str(fault)  # noqa: PT017 -- that it comes is the loop's end
                break
    await keys.set_budget(1, Decimal(100))
    assert (await listen(model, asked))[0] == "x"
    await keys.set_budget(1, None)
    assert (await listen(model, asked))[0] == "x"


async def test_calls_at_once_within_a_budget_are_not_refused_for_what_they_might_cost(
    model: OpenAICompatibleModel, keys: LiteLLMKeys
) -> None:
    key = await keys.create(1, budget_usd=Decimal("0.5"))
    might_cost_nearly_a_dollar = request("hi", key=key, max_output_tokens=8192)
    answers = await asyncio.gather(*(listen(model, might_cost_nearly_a_dollar) for _ in range(5)))
    assert len(answers) == 5


async def test_a_revoked_key_stops_at_once(model: OpenAICompatibleModel, keys: LiteLLMKeys) -> None:
    key = await keys.create(1, budget_usd=None)
    await listen(model, request("hi", key=key))
    await keys.revoke(1)
    assert type(await fault_of(model, request("hi", key=key))) is ModelKeyRefusedError
    await keys.revoke(1)
    await keys.set_budget(1, Decimal(1))


async def test_a_proxy_that_is_away_may_come_back_and_a_wrong_master_key_wont(litellm_proxy: LiteLLMProxy) -> None:
    away = LiteLLMKeys(f"http://127.0.0.1:{free_port()}", "sk-any", instance="x")
    wrong = LiteLLMKeys(litellm_proxy.base_url, "sk-wrong", instance="x")
    for keys, kind in ((away, ModelUnavailableError), (wrong, ModelKeyRefusedError)):
        for call in (keys.create(1, budget_usd=None), keys.revoke(1), keys.set_budget(1, None)):
            with pytest.raises(kind):
                await call
        await keys.close()
