from typing import Any

import httpx
import pytest
from sqlalchemy import text

from api.services import Services
from storage import environment
from storage.engine import Database
from tests.api.stand import Account, register
from tests.storage.records import new_project


@pytest.fixture
async def project(database: Database, account: Account) -> int:
    return await new_project(database, account.user_id)


async def put(client: httpx.AsyncClient, account: Account, project: int, variables: object) -> httpx.Response:
    return await client.put(f"/api/projects/{project}/env", json=variables, headers=account.headers)


async def values(services: Services, project: int) -> dict[str, str]:
    async with services.database.reading() as session:
        return await environment.values(session, project, services.secrets)


async def test_the_set_is_replaced_and_only_names_are_shown(
    client: httpx.AsyncClient, account: Account, project: int, services: Services
) -> None:
    first = await put(client, account, project, {"B": "two words", "A": "ü🎈\n"})
    assert (first.status_code, first.json()) == (200, {"items": ["A", "B"]})
    second = await put(client, account, project, {"C": "", "A": "new"})
    shown = await client.get(f"/api/projects/{project}/env", headers=account.headers)

    assert second.json() == shown.json() == {"items": ["A", "C"]}
    assert await values(services, project) == {"A": "new", "C": ""}


async def test_null_keeps_a_value_that_nobody_can_read(
    client: httpx.AsyncClient, account: Account, project: int, services: Services
) -> None:
    await put(client, account, project, {"KEPT": "secret", "GONE": "x"})
    answer = await put(client, account, project, {"KEPT": None, "NEVER_SET": None, "NEW": "y"})

    assert answer.json() == {"items": ["KEPT", "NEW"]}
    assert await values(services, project) == {"KEPT": "secret", "NEW": "y"}


async def test_values_are_encrypted_at_rest(
    client: httpx.AsyncClient, account: Account, project: int, database: Database
) -> None:
    await put(client, account, project, {"KEY": "plain-text-secret"})
    async with database.reading() as session:
        stored = await session.scalar(text("SELECT value_encrypted FROM environment_variables"))

    assert b"plain-text-secret" not in bytes(stored or b"")


@pytest.mark.parametrize(
    "variables",
    [
        {"PORT": "1"},
        {"STUDIO_TOKEN": "x"},
        {"1A": "x"},
        {"": "x"},
        {"A-B": "x"},
        {"A\n": "x"},
        {"Ä": "x"},
        {"A" * 129: "x"},
        {"A": "x" * (32 * 1024 + 1)},
        {"A": "ü" * (16 * 1024 + 1)},
        {"A": "nul\0"},
        {"A": 1},
        {"A": ["x"]},
        {f"A{n}": "x" for n in range(101)},
        ["A"],
        None,
    ],
)
async def test_what_cannot_be_a_variable_is_refused_and_changes_nothing(
    client: httpx.AsyncClient, account: Account, project: int, services: Services, variables: Any
) -> None:
    await put(client, account, project, {"BEFORE": "x"})
    answer = await put(client, account, project, variables)

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert await values(services, project) == {"BEFORE": "x"}


async def test_the_bounds_themselves_are_allowed(client: httpx.AsyncClient, account: Account, project: int) -> None:
    assert (await put(client, account, project, {"_" * 128: "x" * 32 * 1024, "port": "", "PORT_2": ""})).is_success
    assert (await put(client, account, project, {f"A{n}": "x" for n in range(100)})).is_success


async def test_the_reason_names_what_is_wrong_and_not_the_value(
    client: httpx.AsyncClient, account: Account, project: int
) -> None:
    answer = await put(client, account, project, {"STUDIO_X": "my-secret"})

    assert "STUDIO_" in answer.json()["errors"][0]["msg"]
    assert "my-secret" not in answer.text


async def test_only_the_owner_gets_in(client: httpx.AsyncClient, account: Account, project: int) -> None:
    stranger = await register(client)

    assert (await put(client, stranger, project, {"A": "x"})).status_code == 404
    assert (await client.get(f"/api/projects/{project}/env", headers=stranger.headers)).status_code == 404
    assert (await client.get(f"/api/projects/{project}/env")).status_code == 401
