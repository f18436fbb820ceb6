import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import update
from temporalio.testing import WorkflowEnvironment

from activities.ports import Runtime
from api.services import ApiConfig
from api.temporal import TemporalGateway
from storage.engine import Database
from storage.tables import User
from tests.api.stand import Account, free_port

TEMPORAL = Path(sys.executable).parent / "temporal"


class ReadyRuntime:
    name = "ready"

    async def ready(self) -> None:
        return


class SilentRuntime:
    name = "silent"

    async def ready(self) -> None:
        await asyncio.sleep(60)


async def test_alive_needs_nobody(client: httpx.AsyncClient) -> None:
    answer = await client.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})


async def test_not_ready_says_what_is_down(client: httpx.AsyncClient) -> None:
    answer = await client.get("/readyz")
    body = answer.json()
    assert (answer.status_code, body["code"], body["retryable"]) == (503, "not_ready", True)
    assert int(answer.headers["retry-after"]) > 0
    states = {name: state["state"] for name, state in body["dependencies"].items()}
    assert states == {"postgres": "up", "temporal": "down", "runtime": "down", "models": "down"}
    assert body["dependencies"]["runtime"]["detail"] == "The container engine doesn't answer."
    assert body["dependencies"]["postgres"]["latency_ms"] > 0


class TestEverythingUp:
    @pytest.fixture
    def runtime(self) -> Runtime:
        return cast("Runtime", ReadyRuntime())

    @pytest.fixture
    async def temporal(self) -> AsyncIterator[TemporalGateway]:
        async with await WorkflowEnvironment.start_local(dev_server_existing_path=str(TEMPORAL)) as env:
            yield TemporalGateway(env.client.service_client.config.target_host, "default")

    async def test_ready(self, client: httpx.AsyncClient) -> None:
        answer = await client.get("/readyz")
        body = answer.json()
        assert (answer.status_code, body["status"], body["runtime"]) == (200, "ready", "ready")
        states = {name: state["state"] for name, state in body["dependencies"].items()}
        assert states == {"postgres": "up", "temporal": "up", "runtime": "up", "models": "down"}
        assert body["dependencies"]["models"]["detail"] == "The model's server can't be reached."


class TestSilence:
    @pytest.fixture
    def runtime(self) -> Runtime:
        return cast("Runtime", SilentRuntime())

    async def test_each_check_is_bounded(self, client: httpx.AsyncClient) -> None:
        async with asyncio.timeout(3.5):
            answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert "No answer within 2 s" in answer.json()["dependencies"]["runtime"]["detail"]


class TestPostgresAway:
    @pytest.fixture
    async def database(self) -> AsyncIterator[Database]:
        pool = Database(f"postgresql://studio:x@127.0.0.1:{free_port()}/studio")
        yield pool
        await pool.close()

    async def test_the_api_says_503_with_retry_after(self, client: httpx.AsyncClient) -> None:
        answer = await client.get("/readyz")
        assert answer.json()["dependencies"]["postgres"]["state"] == "down"
        login = {"username": "a@example.com", "password": "x"}
        for headers in ({}, {"Idempotency-Key": "k"}):
            answer = await client.post("/api/auth/login", data=login, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            assert answer.json()["retryable"] is True
            assert int(answer.headers["retry-after"]) > 0


async def test_metrics_are_for_superusers(client: httpx.AsyncClient, account: Account, database: Database) -> None:
    assert (await client.get("/metrics")).status_code == 401
    assert (await client.get("/metrics", headers=account.headers)).status_code == 403
    async with database.transaction() as session:
        await session.execute(update(User).values(is_superuser=True))
    await client.get("/api/users/me/api-keys/123", headers=account.headers)
    answer = await client.get("/metrics", headers=account.headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    text = answer.text
    assert 'studio_http_requests_total{method="POST",route="/api/auth/register",status="201"} 1.0' in text
    assert 'route="/metrics",status="403"' in text
    assert "/api/users/me/api-keys/123" not in text


def test_the_document_names_every_error(app: FastAPI, config: ApiConfig) -> None:
    document = app.openapi()
    assert app.openapi() is document
    schemas = document["components"]["schemas"]
    assert {"Problem", "ValidationProblem", "IncidentProblem", "FieldError"} <= set(schemas)
    assert "HTTPValidationError" not in schemas
    login = document["paths"]["/api/auth/login"]["post"]["responses"]
    assert set(login) >= {"200", "400", "401", "413", "422", "429", "500", "503"}
    assert "bad_credentials" in login["401"]["description"]
    me = document["paths"]["/api/users/me"]["get"]
    assert set(me["responses"]) >= {"200", "401", "403", "500", "503"}
    assert me["security"] == [{"bearer": []}]
    for path, operations in document["paths"].items():
        # Under /v1 errors have OpenAI's shape, which its clients read.
        expected = "application/json" if path.startswith("/v1/") else "application/problem+json"
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert set(response["content"]) == {expected}, (operation["summary"], status)
