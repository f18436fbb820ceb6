"""The official `openai` package of npm works against this service: its answers, its streams, its typed errors."""

import asyncio
from pathlib import Path

import httpx
import pytest

from storage.engine import Database
from tests.api.stand import Account, register
from tests.api.test_openai import budget, calls, completions, models, server, upstream
from tests.api.test_users import make_key
from tests.clients import npm

__all__ = ["completions", "models", "server", "upstream"]  # fixtures: the API over the scripted models

FOLDER = Path(__file__).parents[1] / "clients" / "openai"
CALLS = {
    "text": "hello world",
    "calls": [{"name": "look", "arguments": {"at": "the sky"}}],
    "usage": {"input": 7, "output": 3},
    "pieces_per_s": 0,
}
SCRIPTS = {
    "calls": {"steps": [CALLS], "repeat": True},
    "endless": {"steps": [{"tokens": 100_000, "rate": 50}]},
    "broken": {"steps": [{"text": "hello world", "fail": {"no_done": True, "times": 9}}]},
}


@pytest.mark.timeout(400)
async def test_the_official_client_works_as_it_is(
    client: httpx.AsyncClient, account: Account, database: Database, address: str
) -> None:
    poor = await register(client)
    await budget(database, poor, "0")
    told = await npm.run(
        FOLDER,
        "calls.mjs",
        {
            "baseURL": f"{address}/v1",
            "apiKey": (await make_key(client, account))["key"],
            "poorKey": (await make_key(client, poor))["key"],
            "scripts": SCRIPTS,
        },
    )
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert told["models"] == ["demo", "scripted"]
    assert told["model"] == "scripted"
    assert told["whole"] == {"text": "hello world", "usage": usage}
    assert told["streamed"] == {"text": "hello world", "usage": usage}
    assert told["helper"] == {"name": "look", "arguments": {"at": "the sky"}}
    assert told["left"] == 5
    classes = {name: (error["class"], error.get("code")) for name, error in told["errors"].items()}
    assert classes == {
        "credentials": ("AuthenticationError", "invalid_api_key"),
        "model": ("NotFoundError", "model_not_found"),
        "missing": ("NotFoundError", "model_not_found"),
        "request": ("BadRequestError", "bad_request"),
        "budget": ("RateLimitError", "insufficient_quota"),
        "broken": ("APIError", "model_unavailable"),
    }
    async with asyncio.timeout(20):
        while any(row.settled_at is None for row in await calls(database)):  # noqa: ASYNC110 -- settled by the server
            await asyncio.sleep(0.05)
    # The one that was left is an estimate; the one that broke off had told its usage before.
    assert sorted(row.estimated for row in await calls(database)) == [False, False, False, False, True]
