"""`/v1` on a real server over the scripted models: OpenAI's shapes and errors, and every call paid for once."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from decimal import Decimal
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from activities.language_models.openai_compatible import ModelServer, OpenAICompatibleModel
from activities.language_models.passthrough import PassedThrough
from activities.ports import ChatCompletions, LanguageModel
from api import sse
from storage.engine import Database
from tests.api.stand import Account, browsing, register
from tests.api.test_users import bearing, make_key
from tests.language_models.servers import serving
from workers.scripted_model.app import create_app

COMPLETIONS = "/v1/chat/completions"
PRICES = (Decimal("0.001"), Decimal("0.002"))


@pytest.fixture
async def upstream() -> AsyncIterator[str]:
    async with serving(create_app()) as address:
        yield address


@pytest.fixture
def server(upstream: str) -> ModelServer:
    return ModelServer(f"{upstream}/v1", "sk-service", default_model="scripted", prices=PRICES)


@pytest.fixture
def models(server: ModelServer) -> LanguageModel:
    return OpenAICompatibleModel(server)


@pytest.fixture
def completions(server: ModelServer) -> ChatCompletions:
    return PassedThrough(server)


def asking(*steps: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A request for a script of these steps."""
    script = json.dumps({"steps": steps, "key": "test"})
    return {"model": "scripted", "messages": [{"role": "user", "content": f"<script>{script}</script>"}], **fields}


async def calls(database: Database) -> list[Any]:
    async with database.reading() as session:
        return list(await session.execute(text("SELECT * FROM model_calls ORDER BY at")))


async def settled(database: Database) -> Any:
    """The one call, once it is settled."""
    async with asyncio.timeout(20):
        while True:
            rows = await calls(database)
            if rows and all(row.settled_at for row in rows):
                assert len(rows) == 1
                return rows[0]
            await asyncio.sleep(0.05)


async def chunks_of(client: httpx.AsyncClient, account: Account, body: dict[str, Any]) -> list[Any]:
    async with client.stream("POST", COMPLETIONS, json=body, headers=account.headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line async for line in answer.aiter_lines()]
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


async def budget(database: Database, account: Account, usd: str) -> None:
    async with database.transaction() as session:
        await session.execute(
            text("UPDATE users SET monthly_budget_usd = :usd WHERE id = :id"),
            {"usd": Decimal(usd), "id": account.user_id},
        )


async def test_models_are_listed_and_found(client: httpx.AsyncClient, account: Account) -> None:
    listed = (await client.get("/v1/models", headers=account.headers)).json()
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == ["demo", "scripted"]
    assert (await client.get("/v1/models/demo", headers=account.headers)).json()["object"] == "model"
    missing = await client.get("/v1/models/some/other", headers=account.headers)
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_whole_answer_is_passed_on_and_paid_for(
    client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    key = await make_key(client, account)
    body = asking({"text": "hello", "usage": {"input": 100, "output": 10}, "pieces_per_s": 0})
    answer = await client.post(COMPLETIONS, json=body, headers=bearing(key["key"]))
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["object"] == "chat.completion"
    assert told["choices"][0]["message"]["content"] == "hello"
    assert told["usage"]["prompt_tokens"] == 100
    (row,) = await calls(database)
    assert (row.user_id, row.model, row.input_tokens, row.output_tokens) == (account.user_id, "scripted", 100, 10)
    assert row.cost_usd == Decimal("0.12")
    assert row.settled_at is not None
    assert not row.estimated
    assert row.reserved_usd >= Decimal("16.384")  # the longest answer, 8192 tokens, and the prompt


@pytest.mark.parametrize("wanted", [True, False])
async def test_a_stream_shows_its_usage_to_those_who_ask_and_is_paid_for_alike(
    client: httpx.AsyncClient, account: Account, database: Database, wanted: bool
) -> None:
    options = {"stream_options": {"include_usage": True}} if wanted else {}
    body = asking(
        {"text": "hello world", "usage": {"input": 7, "output": 3}, "pieces_per_s": 0}, stream=True, **options
    )
    *chunks, end = await chunks_of(client, account, body)
    assert end == "[DONE]"
    assert (
        "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
        == "hello world"
    )
    assert chunks[-1 if not wanted else -2]["choices"][0]["finish_reason"] == "stop"
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert [usage["prompt_tokens"] for usage in usages] == ([7] if wanted else [])
    assert wanted or not any("usage" in chunk for chunk in chunks)
    (row,) = await calls(database)
    assert (row.input_tokens, row.output_tokens, row.estimated) == (7, 3, False)
    assert row.settled_at is not None  # by the time that the end is told


async def test_a_client_that_leaves_ends_the_call_at_the_server_and_pays_for_what_came(
    client: httpx.AsyncClient, account: Account, database: Database, upstream: str, address: str
) -> None:
    body = asking({"tokens": 100_000, "rate": 50}, stream=True)
    async with (
        browsing(address) as leaving,
        leaving.stream("POST", COMPLETIONS, json=body, headers=account.headers) as answer,
    ):
        pieces = 0
        async for line in answer.aiter_lines():
            pieces += line.startswith("data: ")
            if pieces > 5:
                break
    row = await settled(database)
    assert row.estimated
    assert 0 < row.output_tokens < 1000
    assert row.input_tokens > 10
    await until_counted(upstream, "cut")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_before_the_first_word_ends_the_call_too(
    client: httpx.AsyncClient, account: Account, database: Database, upstream: str, address: str, stream: bool
) -> None:
    body = asking(
        {"text": "late", "first_delay_s": 600, **({"fail": {"hang_after": 0}} if stream else {})}, stream=stream
    )
    async with browsing(address) as leaving:
        asking_now = asyncio.create_task(leaving.post(COMPLETIONS, json=body, headers=account.headers))
        await until_counted(upstream, "begun")
        asking_now.cancel()
        with suppress(asyncio.CancelledError):
            await asking_now
    row = await settled(database)
    assert (row.estimated, row.output_tokens) == (True, 0)
    assert row.cost_usd == row.input_usd
    await until_counted(upstream, "cut")


async def until_counted(upstream: str, outcome: str) -> None:
    async with asyncio.timeout(20):
        while (await upstream_calls(upstream)).get(outcome) != 1:  # noqa: ASYNC110 -- it is another server's count
            await asyncio.sleep(0.02)


async def upstream_calls(upstream: str) -> dict[str, int]:
    async with browsing(upstream) as client:
        counted = (await client.get("/calls")).json()["calls"]
    total: dict[str, int] = {}
    for outcome in counted.values():
        for name, count in outcome.items():
            total[name] = total.get(name, 0) + count
    return total


@pytest.mark.parametrize("fail", [{"no_done": True}, {"drop_after": 2}, {"error_after": 2}])
async def test_an_answer_that_breaks_off_says_so_and_what_came_is_paid(
    client: httpx.AsyncClient, account: Account, database: Database, fail: dict[str, Any]
) -> None:
    *chunks, last = await chunks_of(client, account, asking({"text": "hello world", "fail": fail}, stream=True))
    assert chunks
    assert last["error"]["type"] == "server_error"
    (row,) = await calls(database)
    assert row.settled_at is not None
    assert row.output_tokens > 0


@pytest.mark.parametrize(
    ("fail", "status", "kind", "code"),
    [
        ({"status": 500}, 503, "server_error", "model_unavailable"),
        ({"status": 429, "headers": {"retry-after": "7"}}, 429, "rate_limit_error", "rate_limit_exceeded"),
        ({"status": 401}, 403, "permission_error", "model_key_refused"),
        (
            {
                "status": 429,
                "body": {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}},
            },
            429,
            "insufficient_quota",
            "insufficient_quota",
        ),
        (
            {"status": 400, "body": {"error": {"message": "long", "code": "context_length_exceeded"}}},
            400,
            "invalid_request_error",
            "context_length_exceeded",
        ),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_what_the_server_refuses_has_openai_s_error_and_costs_nothing(  # noqa: PLR0917 -- given by name
    client: httpx.AsyncClient,
    account: Account,
    database: Database,
    stream: bool,
    fail: dict[str, Any],
    status: int,
    kind: str,
    code: str,
) -> None:
    body = asking({"text": "never", "fail": fail}, stream=stream)
    answer = await client.post(COMPLETIONS, json=body, headers=account.headers)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == (kind, code)
    assert "sk-service" not in answer.text
    assert answer.headers.get("x-should-retry") == ("false" if kind == "insufficient_quota" else None)
    if "headers" in fail:
        assert answer.headers["retry-after"] == "7"
    assert await calls(database) == []


async def test_a_spent_budget_refuses_before_the_server_is_asked(
    client: httpx.AsyncClient, account: Account, database: Database, upstream: str
) -> None:
    await budget(database, account, "0.1")
    body = asking({"text": "hello", "usage": {"input": 100, "output": 10}, "pieces_per_s": 0})
    answers = await asyncio.gather(*(client.post(COMPLETIONS, json=body, headers=account.headers) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] + [429] * 7
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "insufficient_quota"
    assert refused.headers["x-should-retry"] == "false"
    assert int(refused.headers["retry-after"]) > 0
    assert (await upstream_calls(upstream))["begun"] == 1
    other = await register(client)
    assert (await client.post(COMPLETIONS, json=body, headers=other.headers)).status_code == 200


async def test_what_this_service_refuses_has_openai_s_error_too(client: httpx.AsyncClient, account: Account) -> None:
    async def refusal(body: Any = None, **given: Any) -> tuple[int, str, str | None]:
        given = {"content": json.dumps(body)} if body is not None else given
        answer = await client.post(COMPLETIONS, headers=account.headers, **given)
        error = answer.json()["error"]
        assert answer.headers["content-type"] == "application/json"
        return answer.status_code, error["type"], error["code"]

    invalid = (400, "invalid_request_error", "bad_request")
    messages = [{"role": "user", "content": "hi"}]
    assert await refusal([]) == invalid
    assert await refusal({"messages": []}) == invalid
    assert await refusal({"messages": messages, "n": 2}) == invalid
    assert await refusal({"messages": messages, "n": [1]}) == invalid
    assert await refusal({"messages": messages, "stream": "yes"}) == invalid
    assert await refusal({"messages": messages, "max_tokens": 0}) == invalid
    assert await refusal({"messages": messages, "stream_options": 1, "stream": True}) == invalid
    assert await refusal({"messages": messages, "model": 7}) == invalid
    assert await refusal({"messages": [{"content": "\ud800"}]}) == invalid
    assert await refusal(content=b"{") == invalid
    assert await refusal(content=b'{"messages": [NaN]}') == invalid
    assert await refusal(content=b'{"messages": [1e999]}') == invalid
    assert await refusal(content=b'{"messages": [' + b"[" * 100_000) == invalid
    assert (await refusal({"messages": messages, "api_base": "http://elsewhere"}))[2] == "unsupported_parameter"
    assert (await refusal({"messages": messages, "model": "unknown"}))[::2] == (404, "model_not_found")
    assert (await refusal(content=b" " * (11 * 1024 * 1024)))[0] == 413


async def test_strangers_readers_and_wrong_ways_have_openai_s_error(
    client: httpx.AsyncClient, account: Account
) -> None:
    for headers in ({}, {"Authorization": "Bearer stu_wrong"}, {"Authorization": "Basic x"}):
        for answer in (
            await client.post(COMPLETIONS, json=asking({"text": "x"}), headers=headers),
            await client.get("/v1/models", headers=headers),
        ):
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
    reader = await make_key(client, account, scopes=["read"])
    denied = await client.post(COMPLETIONS, json=asking({"text": "x"}), headers=bearing(reader["key"]))
    assert (denied.status_code, denied.json()["error"]["type"]) == (403, "permission_error")
    nowhere = await client.get("/v1/embeddings", headers=account.headers)
    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "not_found")
    elsewhere = await client.get("/v10", headers=account.headers)
    assert elsewhere.headers["content-type"] == "application/problem+json"


async def test_unknown_fields_and_images_are_passed_on_and_bounds_are_kept(
    client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    script = json.dumps({"steps": [{"say_prompt": True, "pieces_per_s": 0}]})
    parts = [
        {"type": "text", "text": f"<script>{script}</script>"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 3_000_000}},
    ]
    body = {"messages": [{"role": "user", "content": parts}], "temperature": 0.5, "max_tokens": 10**9}
    answer = await client.post(COMPLETIONS, json=body, headers=account.headers)
    assert answer.status_code == 200, answer.text[:300]
    (row,) = await calls(database)
    assert row.model == "scripted"
    assert row.reserved_usd < 30  # an image counts as an image, and nobody reserves a billion tokens


async def test_a_stream_ends_with_the_api_key_that_it_was_opened_by(
    client: httpx.AsyncClient,
    account: Account,
    database: Database,
    upstream: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse, "ACCESS_CHECK_S", 0.1)
    key = await make_key(client, account)
    body = asking({"tokens": 100_000, "rate": 50}, stream=True)
    async with (
        asyncio.timeout(30),
        client.stream("POST", COMPLETIONS, json=body, headers=bearing(key["key"])) as answer,
    ):
        lines = answer.aiter_lines()
        assert await anext(lines)
        await client.delete(f"/api/users/me/api-keys/{key['id']}", headers=account.headers)
        rest = [line async for line in lines]
    assert "data: [DONE]" not in rest
    assert (await settled(database)).estimated
    await until_counted(upstream, "cut")
