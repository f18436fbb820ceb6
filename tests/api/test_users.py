from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
from sqlalchemy import select, update

from storage.engine import Database
from storage.tables import ApiKey, User
from tests.api.stand import Account, register

KEYS = "/api/users/me/api-keys"


async def make_key(client: httpx.AsyncClient, account: Account, **fields: object) -> dict[str, str]:
    answer = await client.post(KEYS, json={"name": "ci", **fields}, headers=account.headers)
    assert answer.status_code == 201, answer.text
    made: dict[str, str] = answer.json()
    return made


def bearing(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def promote(database: Database, account: Account) -> None:
    async with database.transaction() as session:
        await session.execute(update(User).where(User.id == account.user_id).values(is_superuser=True))


async def test_me_is_read_and_renamed(client: httpx.AsyncClient, account: Account) -> None:
    url = "/api/users/me"
    me = (await client.get(url, headers=account.headers)).json()
    assert set(me) == {"id", "email", "name", "created_at", "is_superuser"}
    assert (me["id"], me["name"]) == (account.user_id, None)
    assert (await client.patch(url, json={"name": "Ada"}, headers=account.headers)).json()["name"] == "Ada"
    assert (await client.patch(url, json={}, headers=account.headers)).json()["name"] == "Ada"
    assert (await client.patch(url, json={"name": None}, headers=account.headers)).json()["name"] is None
    for wrong in ({"is_superuser": True}, {"email": "x@example.com"}, {"name": ""}, {"name": "x" * 101}):
        assert (await client.patch(url, json=wrong, headers=account.headers)).status_code == 422
    assert (await client.get(url, headers=account.headers)).json() == me


async def test_an_api_key_is_shown_once_and_stored_as_hash(
    client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    made = await make_key(client, account)
    assert set(made) == {"id", "name", "prefix", "scopes", "created_at", "expires_at", "last_used_at", "key"}
    assert made["key"].startswith("stu_")
    assert made["key"].startswith(made["prefix"])
    assert len(made["prefix"]) < 16
    listed = (await client.get(KEYS, headers=account.headers)).json()
    assert listed == {"items": [{name: made[name] for name in made if name != "key"}], "next_cursor": None}
    async with database.reading() as session:
        row = (await session.execute(select(ApiKey))).scalar_one()
    assert made["key"].encode() not in row.key_hash


async def test_an_api_key_works_until_it_is_deleted(client: httpx.AsyncClient, account: Account) -> None:
    made = await make_key(client, account)
    assert (await client.get("/api/users/me", headers=bearing(made["key"]))).json()["id"] == account.user_id
    assert (await client.get("/api/users/me", headers=bearing(made["key"] + "x"))).status_code == 401
    for expected in (204, 404):
        answer = await client.delete(f"{KEYS}/{made['id']}", headers=account.headers)
        assert answer.status_code == expected
    assert (await client.get("/api/users/me", headers=bearing(made["key"]))).status_code == 401


async def test_somebody_else_s_key_and_no_key_answer_alike(client: httpx.AsyncClient, account: Account) -> None:
    other = await register(client)
    theirs = await make_key(client, other)
    answers = [
        await client.delete(f"{KEYS}/{key_id}", headers=account.headers) for key_id in (theirs["id"], str(uuid4()))
    ]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].content == answers[1].content
    assert (await client.get("/api/users/me", headers=bearing(theirs["key"]))).status_code == 200


async def test_scopes_bound_what_a_key_may(client: httpx.AsyncClient, account: Account) -> None:
    reader = bearing((await make_key(client, account, scopes=["read"]))["key"])
    writer = bearing((await make_key(client, account, scopes=["write"]))["key"])
    assert (await client.get("/api/users/me", headers=reader)).status_code == 200
    refused = await client.patch("/api/users/me", json={"name": "x"}, headers=reader)
    assert (refused.status_code, refused.json()["code"]) == (403, "missing_scope")
    assert (await client.get("/api/users/me", headers=writer)).status_code == 403
    assert (await client.patch("/api/users/me", json={"name": "x"}, headers=writer)).status_code == 200
    for wrong in ([], ["admin"], "read"):
        answer = await client.post(KEYS, json={"name": "x", "scopes": wrong}, headers=account.headers)
        assert answer.status_code == 422


async def test_a_key_can_neither_make_keys_nor_change_the_password(client: httpx.AsyncClient, account: Account) -> None:
    headers = bearing((await make_key(client, account))["key"])
    body = {"current": account.password, "new": "another password"}
    answers = [
        await client.get(KEYS, headers=headers),
        await client.post(KEYS, json={"name": "x"}, headers=headers),
        await client.post("/api/users/me/password", json=body, headers=headers),
    ]
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(403, "session_required")}


async def test_an_expired_key_is_refused(client: httpx.AsyncClient, account: Account, database: Database) -> None:
    made = await make_key(client, account, expires_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    assert (await client.get("/api/users/me", headers=bearing(made["key"]))).status_code == 200
    async with database.transaction() as session:
        await session.execute(update(ApiKey).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    assert (await client.get("/api/users/me", headers=bearing(made["key"]))).status_code == 401
    for wrong in ("2020-01-01T00:00:00Z", "2999-01-01T00:00:00", "9999-12-31T23:59:59-10:00"):
        answer = await client.post(KEYS, json={"name": "x", "expires_at": wrong}, headers=account.headers)
        assert answer.status_code == 422, wrong


async def test_last_use_is_written_at_most_once_a_minute(
    client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    headers = bearing((await make_key(client, account))["key"])

    async def use() -> datetime | None:
        await client.get("/api/users/me", headers=headers)
        async with database.reading() as session:
            return (await session.execute(select(ApiKey.last_used_at))).scalar_one()

    first = await use()
    assert first is not None
    assert await use() == first
    async with database.transaction() as session:
        await session.execute(update(ApiKey).values(last_used_at=first - timedelta(seconds=61)))
    again = await use()
    assert again is not None
    assert again > first


async def test_lists_are_paged_by_cursor(client: httpx.AsyncClient, account: Account) -> None:
    names = [f"key {n}" for n in range(5)]
    for name in names:
        await make_key(client, account, name=name)
    seen, cursor = [], None
    for expected in (2, 2, 1):
        params = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
        page = (await client.get(KEYS, params=params, headers=account.headers)).json()
        assert len(page["items"]) == expected
        seen += [item["name"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert (seen, cursor) == (names, None)
    for wrong in ("x", "", "=", "a" * 201, "MTI", "ä"):
        answer = await client.get(KEYS, params={"cursor": wrong}, headers=account.headers)
        assert answer.status_code == 422, wrong
        assert answer.json()["code"] == ("validation_failed" if len(wrong) > 200 else "bad_cursor")
    for limit in ("0", "201", "x"):
        assert (await client.get(KEYS, params={"limit": limit}, headers=account.headers)).status_code == 422


async def test_admin_routes_are_for_superusers(client: httpx.AsyncClient, account: Account, database: Database) -> None:
    paths = ("/api/admin/users", "/api/admin/projects", "/api/admin/dev-servers")
    for path in paths:
        answer = await client.get(path, headers=account.headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "superuser_required")
        assert (await client.get(path)).status_code == 401
    await promote(database, account)
    for path in paths:
        assert (await client.get(path, headers=account.headers)).status_code == 200


async def test_an_operator_shuts_a_user_out(client: httpx.AsyncClient, account: Account, database: Database) -> None:
    await promote(database, account)
    other = await register(client)
    url = f"/api/admin/users/{other.user_id}"
    answer = await client.patch(url, json={"is_active": False}, headers=account.headers)
    assert (answer.status_code, answer.json()["is_active"]) == (200, False)
    assert (await client.get("/api/users/me", headers=other.headers)).status_code == 401
    assert (await client.patch(url, json={"is_active": True}, headers=account.headers)).status_code == 200
    assert (await client.get("/api/users/me", headers=other.headers)).status_code == 401
    listed = (await client.get("/api/admin/users", params={"limit": "1"}, headers=account.headers)).json()
    assert [user["id"] for user in listed["items"]] == [account.user_id]
    assert listed["next_cursor"]
    own = await client.patch(
        f"/api/admin/users/{account.user_id}", json={"is_superuser": False}, headers=account.headers
    )
    assert (own.status_code, own.json()["code"]) == (409, "own_account")
    missing = await client.patch("/api/admin/users/999999", json={}, headers=account.headers)
    assert missing.status_code == 404
