"""What operators change of a user's money and key; Temporal is away, and that refuses nothing."""

import httpx
from sqlalchemy import text

from storage import model_keys
from storage.engine import Database
from storage.secret_box import SecretBox
from tests.api.conftest import SECRET_KEY
from tests.api.stand import Account, register
from tests.api.test_users import promote

SECRETS = SecretBox(SECRET_KEY)


async def key_of(database: Database, user_id: int) -> tuple[str | None, bool]:
    async with database.reading() as session:
        stale = await session.scalar(text("SELECT is_stale FROM model_keys"))
        return await model_keys.key_of(session, user_id, SECRETS), bool(stale)


async def give_key(database: Database, user_id: int) -> None:
    async with database.transaction() as session:
        state = await model_keys.state_of(session, user_id, SECRETS)
        assert await model_keys.store(session, user_id, "sk-1", SECRETS, after_version=state.version, is_stale=False)


async def test_a_budget_is_set_and_given_back_and_the_proxy_is_to_be_told(
    client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    await promote(database, account)
    user = await register(client)
    url = f"/api/admin/users/{user.user_id}"
    await give_key(database, user.user_id)
    for sent, shown in (("2.5", "2.5"), (0, "0"), (None, None)):
        answer = await client.patch(url, json={"monthly_budget_usd": sent}, headers=account.headers)
        assert answer.status_code == 200, answer.text
        got = answer.json()["monthly_budget_usd"]
        assert (None if got is None else float(got)) == (None if shown is None else float(shown))
    assert await key_of(database, user.user_id) == ("sk-1", True)
    assert (await client.patch(url, json={"monthly_budget_usd": -1}, headers=account.headers)).status_code == 422
    assert (await client.patch(url, json={"monthly_budget_usd": 1}, headers=user.headers)).status_code == 403


async def test_a_rotated_key_and_that_of_a_user_who_is_shut_out_are_used_no_more(
    client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    await promote(database, account)
    user = await register(client)
    await give_key(database, user.user_id)
    answer = await client.post(f"/api/admin/users/{user.user_id}/model-key", headers=account.headers)
    assert answer.status_code == 202
    assert await key_of(database, user.user_id) == (None, True)
    unknown = await client.post("/api/admin/users/999999/model-key", headers=account.headers)
    assert unknown.status_code == 404

    await give_key(database, user.user_id)
    await client.patch(f"/api/admin/users/{user.user_id}", json={"is_active": False}, headers=account.headers)
    assert await key_of(database, user.user_id) == (None, True)


async def test_a_user_who_is_being_deleted_is_shut_out_for_good(
    client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    await promote(database, account)
    user = await register(client)
    await give_key(database, user.user_id)
    url = f"/api/admin/users/{user.user_id}"
    for _ in range(2):
        answer = await client.delete(url, headers=account.headers)
        assert (answer.status_code, answer.json()["is_active"], answer.json()["is_leaving"]) == (202, False, True)
    assert await key_of(database, user.user_id) == (None, True)
    assert (await client.get("/api/users/me", headers=user.headers)).status_code == 401
    back = await client.patch(url, json={"is_active": True}, headers=account.headers)
    assert (back.status_code, back.json()["code"]) == (409, "user_leaving")
    own = await client.delete(f"/api/admin/users/{account.user_id}", headers=account.headers)
    assert (own.status_code, own.json()["code"]) == (409, "own_account")
    assert (await client.delete("/api/admin/users/999999", headers=account.headers)).status_code == 404
