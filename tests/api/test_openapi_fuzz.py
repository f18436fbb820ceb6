"""Schemathesis over the whole OpenAPI, signed in as a superuser who owns a project, on a real server."""

import asyncio
from collections import Counter
from typing import Any

import httpx
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import status_code_conformance
from sqlalchemy import update

from activities.ports import FileStore
from storage import projects
from storage.engine import Database
from storage.projects import NewProject
from storage.tables import Project, User
from tests.api.stand import Account

EXAMPLES = 8
ENDLESS = ("/events",)
"""Streams without an end; they have tests of their own."""


@pytest.fixture
async def project_id(database: Database, account: Account, files: FileStore) -> int:
    async with database.transaction() as session:
        project = await projects.create(session, NewProject(account.user_id, "fuzzed"), limit=10)
        await session.execute(update(Project).values(state="ready"))
        await session.execute(update(User).values(is_superuser=True))
    await files.create(project.ref, None)
    return project.id


@pytest.mark.timeout(120)
async def test_no_input_makes_a_server_error(
    client: httpx.AsyncClient, address: str, account: Account, project_id: int
) -> None:
    assert (await client.get("/openapi.json")).status_code == 200
    answers = await asyncio.to_thread(fuzz, address, account, project_id)
    operations = {label for label, _ in answers}
    reached = {label for label, status in answers if status < 300 or status == 503}
    assert len(operations) > 30
    assert len(reached) > len(operations) / 2, sorted(operations - reached)


@pytest.mark.timeout(60)
async def test_a_server_error_would_be_found(
    app: FastAPI, client: httpx.AsyncClient, address: str, account: Account, project_id: int
) -> None:
    @app.get("/api/broken")
    async def broken(number: int) -> float:
        return 1 / (max(0, number))

    assert (await client.get("/openapi.json")).status_code == 200
    with pytest.raises(FailureGroup, match="Server error"):
        await asyncio.to_thread(fuzz, address, account, project_id, only="/api/broken")


def fuzz(address: str, account: Account, project_id: int, only: str | None = None) -> Counter[tuple[str, int]]:
    """Try every operation; gives how often each answered with which status."""
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    answers: Counter[tuple[str, int]] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()  # type: ignore[union-attr]  # an Err raises here what is wrong with the document
        if not operation.path.endswith(ENDLESS) and only in {None, operation.path}:
            answers += fuzz_operation(operation, account, project_id)
    return answers


def fuzz_operation(operation: APIOperation[Any, Any, Any, Any], account: Account, project_id: int) -> Counter[Any]:
    answers: Counter[tuple[str, int]] = Counter()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def check(case: Case[Any]) -> None:
        if "project_id" in case.path_parameters and answers.total() % 4:
            case.path_parameters["project_id"] = project_id
        response = case.call(headers=account.headers, timeout=20)
        answers[operation.label, response.status_code] += 1
        if response.status_code == 503:  # the engine and Temporal are away, which is no fault of the route's
            assert response.headers["retry-after"]
            return
        case.validate_response(response, checks=[not_a_server_error, status_code_conformance])
        if response.status_code >= 400 and case.method != "HEAD":
            expected = "application/json" if operation.path.startswith("/v1/") else "application/problem+json"
            assert response.headers["content-type"] == [expected]

    check()
    return answers
