"""Reads that prove their session in their own statement: nobody reads on after a revocation, nor somebody else's."""

import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

import httpx
import pytest
from fastapi.dependencies.models import Dependant
from sqlalchemy import update
from structlog.testing import capture_logs

from api.app import ROUTERS
from api.auth.reading import ReaderAuth
from api.auth.tokens import AccessTokens
from storage import projects
from storage.engine import Database
from storage.projects import NewProject
from storage.tables import User
from tests.api.stand import Account, register
from workflows.contracts.errors import UnauthenticatedError

KEYS = "/api/users/me/api-keys"


def _asks_reader(dependant: Dependant) -> bool:
    return isinstance(dependant.call, ReaderAuth) or any(_asks_reader(inner) for inner in dependant.dependencies)


READS = sorted(
    dependant.path or ""
    for router in ROUTERS
    for route in router.routes
    if isinstance(dependant := getattr(route, "dependant", None), Dependant) and _asks_reader(dependant)
)
"""Every route that leaves the session to its own statement, also those that are still to be written."""


@pytest.fixture
async def project_id(database: Database, account: Account) -> int:
    return await make_project(database, account)


async def make_project(database: Database, account: Account) -> int:
    async with database.transaction() as session:
        return (await projects.create(session, NewProject(account.user_id, "p"), limit=10)).id


async def log_out(client: httpx.AsyncClient, account: Account, _database: Database) -> None:
    answer = await client.post("/api/auth/logout", json={"refresh_token": account.refresh_token})
    assert answer.status_code == 204


async def disable(_client: httpx.AsyncClient, account: Account, database: Database) -> None:
    async with database.transaction() as session:
        await session.execute(update(User).where(User.id == account.user_id).values(is_active=False))


def test_the_hot_reads_are_among_them() -> None:
    assert READS == ["/api/projects", "/api/projects/{project_id}", "/api/projects/{project_id}/status"]


@pytest.mark.parametrize("end", [log_out, disable])
@pytest.mark.parametrize("path", READS)
async def test_nothing_is_read_after_the_end(
    client: httpx.AsyncClient,
    account: Account,
    database: Database,
    project_id: int,
    end: Callable[[httpx.AsyncClient, Account, Database], Awaitable[None]],
    path: str,
) -> None:
    url = path.format(project_id=project_id)
    assert (await client.get(url, headers=account.headers)).status_code == 200
    await end(client, account, database)
    answer = await client.get(url, headers=account.headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


async def test_an_empty_list_is_for_who_is_signed_in(
    client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    answer = await client.get("/api/projects", headers=account.headers)
    assert (answer.status_code, answer.json()) == (200, {"items": [], "next_cursor": None})
    await log_out(client, account, database)
    assert (await client.get("/api/projects", headers=account.headers)).status_code == 401
    assert (await client.get("/api/projects")).status_code == 401


async def test_somebody_else_s_project_and_none_answer_alike(
    client: httpx.AsyncClient, account: Account, database: Database, project_id: int
) -> None:
    other = await register(client)
    await make_project(database, other)
    for suffix in ("", "/status"):
        theirs = await client.get(f"/api/projects/{project_id}{suffix}", headers=other.headers)
        missing = await client.get(f"/api/projects/{2**62}{suffix}", headers=other.headers)
        assert (theirs.status_code, missing.status_code) == (404, 404)
        assert theirs.json() == missing.json()
    listed = (await client.get("/api/projects", headers=other.headers)).json()["items"]
    assert project_id not in {item["id"] for item in listed}
    assert len(listed) == 1


async def test_a_session_of_one_user_proves_nothing_for_another(
    client: httpx.AsyncClient, account: Account, app_tokens: AccessTokens, project_id: int
) -> None:
    other = await register(client)
    mixed = app_tokens.issue(account.user_id, app_tokens.read(other.access_token).family)
    answer = await client.get(f"/api/projects/{project_id}", headers={"Authorization": f"Bearer {mixed}"})
    assert answer.status_code == 401


@pytest.fixture
def app_tokens(client: httpx.AsyncClient, app: object) -> AccessTokens:
    found = app.state.auth.tokens  # type: ignore[attr-defined]  # set when the application starts
    assert isinstance(found, AccessTokens)
    return found


@pytest.mark.parametrize(("scopes", "status"), [(None, 200), (["read"], 200), (["write"], 403)])
async def test_an_api_key_needs_its_scope(
    client: httpx.AsyncClient, account: Account, project_id: int, scopes: list[str] | None, status: int
) -> None:
    made = (await client.post(KEYS, json={"name": "ci", "scopes": scopes}, headers=account.headers)).json()
    headers = {"Authorization": f"Bearer {made['key']}"}
    for path in READS:
        assert (await client.get(path.format(project_id=project_id), headers=headers)).status_code == status
    assert (await client.delete(f"{KEYS}/{made['id']}", headers=account.headers)).status_code == 204
    for path in READS:
        assert (await client.get(path.format(project_id=project_id), headers=headers)).status_code == 401


async def test_pages_of_projects_follow_each_other(
    client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    made = [await make_project(database, account) for _ in range(3)]
    seen: list[int] = []
    cursor: dict[str, str] = {}
    for _ in range(2):
        page = (await client.get("/api/projects", params={"limit": "2", **cursor}, headers=account.headers)).json()
        seen += [item["id"] for item in page["items"]]
        cursor = {"cursor": page["next_cursor"]}
    assert seen == made[::-1]
    assert page["next_cursor"] is None


async def test_the_log_names_the_reader(client: httpx.AsyncClient, account: Account, project_id: int) -> None:
    with capture_logs() as log:
        await client.get(f"/api/projects/{project_id}", headers=account.headers)
    entry = next(entry for entry in log if entry["event"] == "request")
    assert (entry["user_id"], entry["status"]) == (account.user_id, 200)


def test_a_verified_token_expires_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    access = AccessTokens(b"k" * 32, 60)
    token = access.issue(7, uuid4())
    assert access.read(token).user_id == 7
    later = time.time() + 61
    monkeypatch.setattr("api.auth.tokens.time.time", lambda: later)
    for _ in range(2):
        with pytest.raises(UnauthenticatedError):
            access.read(token)


def test_verified_tokens_are_kept_in_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.auth.tokens._MOST_VERIFIED", 2)
    access = AccessTokens(b"k" * 32, 60)
    issued = [access.issue(number, uuid4()) for number in range(4)]
    for token in issued:
        access.read(token)
    assert list(access._verified) == issued[2:]
    access.read(issued[2])
    access.read(issued[0])
    assert list(access._verified) == [issued[2], issued[0]]
    with pytest.raises(UnauthenticatedError):
        access.read(issued[0][:-2] + "xx")
    assert len(access._verified) == 2
