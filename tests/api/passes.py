"""Every kind of credential that opens a stream, and every way in which it ends."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import httpx
from sqlalchemy import text

from storage.engine import Database
from tests.api.stand import Account


@dataclass(frozen=True)
class Pass:
    """What a request brings along: a header, or a ticket for its query string."""

    headers: dict[str, str]
    params: dict[str, str]


async def passes(client: httpx.AsyncClient, account: Account) -> dict[str, Pass]:
    """One of each kind: the session's, an API key's, and a ticket of each."""
    made = await client.post("/api/users/me/api-keys", json={"name": "k"}, headers=account.headers)
    key = {"Authorization": f"Bearer {made.json()['key']}"}
    return {
        "session": Pass(account.headers, {}),
        "session's ticket": Pass({}, await _ticket(client, account.headers)),
        "key": Pass(key, {}),
        "key's ticket": Pass({}, await _ticket(client, key)),
    }


async def _ticket(client: httpx.AsyncClient, headers: dict[str, str]) -> dict[str, str]:
    answer = await client.post("/api/auth/ticket", json={}, headers=headers)
    return {"ticket": answer.json()["ticket"]}


async def log_out(client: httpx.AsyncClient, account: Account, database: Database) -> None:
    answer = await client.post("/api/auth/logout", json={"refresh_token": account.refresh_token})
    assert answer.status_code == 204


async def delete_key(client: httpx.AsyncClient, account: Account, database: Database) -> None:
    [key] = (await client.get("/api/users/me/api-keys", headers=account.headers)).json()["items"]
    answer = await client.delete(f"/api/users/me/api-keys/{key['id']}", headers=account.headers)
    assert answer.status_code == 204


async def expire_key(client: httpx.AsyncClient, account: Account, database: Database) -> None:
    await _execute(database, "UPDATE api_keys SET expires_at = now()")


async def expire_session(client: httpx.AsyncClient, account: Account, database: Database) -> None:
    await _execute(database, "UPDATE refresh_tokens SET expires_at = now()")


async def disable_user(client: httpx.AsyncClient, account: Account, database: Database) -> None:
    await _execute(database, "UPDATE users SET is_active = false")


async def _execute(database: Database, statement: str) -> None:
    async with database.transaction() as session:
        await session.execute(text(statement))


End = Callable[[httpx.AsyncClient, Account, Database], Awaitable[None]]
_SESSION: Final = frozenset({"session", "session's ticket"})
_KEY: Final = frozenset({"key", "key's ticket"})
ENDS: Final[list[tuple[End, frozenset[str]]]] = [
    (log_out, _SESSION),
    (expire_session, _SESSION),
    (delete_key, _KEY),
    (expire_key, _KEY),
    (disable_user, _SESSION | _KEY),
]
"""What happens, and which of `passes` end by it."""
