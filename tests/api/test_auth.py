import asyncio
import time
from datetime import timedelta

import httpx
import jwt
import pytest
from sqlalchemy import func, select, update

from api.services import ApiConfig, Services
from storage.engine import Database
from storage.tables import LoginFailure, RefreshToken, Ticket, User
from tests.api.passes import ENDS, End, passes
from tests.api.stand import PASSWORD, Account, account_of, login, register


async def me(client: httpx.AsyncClient, token: str) -> int:
    answer = await client.get("/api/users/me", headers={"Authorization": f"Bearer {token}"})
    return answer.status_code


async def refresh(client: httpx.AsyncClient, token: str) -> httpx.Response:
    answer = await client.post("/api/auth/refresh", json={"refresh_token": token})
    client.cookies.clear()
    return answer


async def age_spent_tokens(database: Database, age: timedelta) -> None:
    async with database.transaction() as session:
        await session.execute(
            update(RefreshToken).where(RefreshToken.used_at.is_not(None)).values(used_at=func.now() - age)
        )


async def test_register_answers_user_and_tokens(client: httpx.AsyncClient) -> None:
    body = {"email": "Ada@example.com", "password": PASSWORD, "name": " Ada "}
    answer = await client.post("/api/auth/register", json=body)
    assert answer.status_code == 201
    tokens = answer.json()
    assert set(tokens) == {"user", "access_token", "refresh_token", "token_type", "expires_in"}
    assert (tokens["token_type"], tokens["expires_in"]) == ("bearer", 900)
    assert set(tokens["user"]) == {"id", "email", "name", "created_at", "is_superuser"}
    assert (tokens["user"]["email"], tokens["user"]["name"]) == ("Ada@example.com", "Ada")
    assert tokens["user"]["is_superuser"] is False
    assert tokens["user"]["created_at"].endswith("Z")
    assert answer.headers["cache-control"] == "no-store"


async def test_an_access_token_has_the_promised_claims(account: Account, services: Services) -> None:
    key = services.secrets.derive("access-token")
    claims = jwt.decode(account.access_token, key, algorithms=["HS256"])
    assert set(claims) == {"sub", "iat", "exp", "jti", "typ"}
    assert (claims["sub"], claims["typ"], claims["exp"] - claims["iat"]) == (str(account.user_id), "access", 900)


@pytest.mark.parametrize(
    "body",
    [
        {"email": "a@example.com", "password": "1234567"},
        {"email": "a@example.com", "password": "x" * 129},
        {"email": "not an address", "password": PASSWORD},
        {"email": "a@example.com"},
        {"email": "a@example.com", "password": PASSWORD, "is_superuser": True},
        {"email": "a@example.com", "password": PASSWORD, "id": 1},
        {"email": "a@example.com", "password": PASSWORD, "name": "nul \x00"},
    ],
)
async def test_a_wrong_registration_is_422(client: httpx.AsyncClient, body: dict[str, object]) -> None:
    answer = await client.post("/api/auth/register", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"][0] == "body"


async def test_an_email_is_taken_once_whatever_its_case_and_however_many_try(client: httpx.AsyncClient) -> None:
    bodies = [{"email": email, "password": PASSWORD} for email in ("Eve@example.com", "eve@example.com") * 2]
    answers = await asyncio.gather(*(client.post("/api/auth/register", json=body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} == {"email_taken"}


async def test_login_takes_the_email_in_any_case(client: httpx.AsyncClient, account: Account) -> None:
    answer = await login(client, account.email.upper())
    assert answer.status_code == 200
    assert await me(client, answer.json()["access_token"]) == 200


async def test_failed_logins_look_alike(client: httpx.AsyncClient, account: Account, database: Database) -> None:
    disabled = await register(client)
    async with database.transaction() as session:
        await session.execute(update(User).where(User.id == disabled.user_id).values(is_active=False))
    attempts = {
        "unknown": "nobody@example.com",
        "wrong": account.email,
        "disabled": disabled.email,
        "odd": "\x00\ud7ff",
    }
    answers = [
        await login(client, email, PASSWORD if kind == "disabled" else "wrong password")
        for kind, email in attempts.items()
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1
    assert answers[0].json()["code"] == "bad_credentials"


async def test_an_unknown_user_takes_as_long_as_a_wrong_password(client: httpx.AsyncClient, account: Account) -> None:
    async def time_of(email: str) -> float:
        began = time.perf_counter()
        assert (await login(client, email, "wrong password")).status_code == 401
        return time.perf_counter() - began

    await login(client, "warm-up@example.com", "wrong password")
    # By turns, so that what else the machine does meets both.
    times = [(await time_of(f"nobody{n}@example.com"), await time_of(account.email)) for n in range(4)]
    unknown, wrong = (min(column) for column in zip(*times, strict=True))
    assert 0.5 < unknown / wrong < 2


async def test_ten_failures_close_an_account_to_everybody(
    client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    for _ in range(10):
        assert (await login(client, account.email.swapcase(), "wrong password")).status_code == 401
    closed = await login(client, account.email)
    assert (closed.status_code, closed.json()["code"]) == (429, "too_many_requests")
    assert closed.json()["retryable"] is True
    assert 1 <= int(closed.headers["retry-after"]) <= 300
    async with database.transaction() as session:
        await session.execute(update(LoginFailure).values(at=LoginFailure.at - timedelta(minutes=5)))
    assert (await login(client, account.email)).status_code == 200


async def test_ten_failures_close_an_address_and_a_success_opens_only_its_account(
    client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    for n in range(9):
        assert (await login(client, f"nobody{n}@example.com", "wrong password")).status_code == 401
    assert (await login(client, account.email, "wrong password")).status_code == 401
    assert (await login(client, account.email)).status_code == 429
    async with database.transaction() as session:
        await session.execute(
            update(LoginFailure).where(LoginFailure.subject.like("address:%")).values(subject="address:192.0.2.7")
        )
    assert (await login(client, account.email)).status_code == 200
    async with database.reading() as session:
        left = await session.execute(select(LoginFailure.subject, func.count()).group_by(LoginFailure.subject))
    counts = {subject: count for subject, count in left if count > 1}
    assert counts == {"address:192.0.2.7": 10}


async def test_concurrent_guesses_are_counted_too(client: httpx.AsyncClient, account: Account) -> None:
    answers = await asyncio.gather(*(login(client, account.email, "wrong password") for _ in range(24)))
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(401) <= 10 + 2
    assert set(statuses) == {401, 429}


async def test_the_event_loop_stays_free_during_logins(client: httpx.AsyncClient, account: Account) -> None:
    worst = 0.0

    async def watch() -> None:
        nonlocal worst
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            worst = max(worst, time.perf_counter() - began - 0.005)

    watcher = asyncio.create_task(watch())
    began = time.perf_counter()
    answers = await asyncio.gather(*(login(client, account.email) for _ in range(20)))
    took = time.perf_counter() - began
    watcher.cancel()
    assert {answer.status_code for answer in answers} == {200}
    assert worst < took / 5


async def test_refresh_rotates_and_the_old_token_is_spent(
    client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    answer = await refresh(client, account.refresh_token)
    assert answer.status_code == 200
    fresh = account_of(answer.json())
    assert fresh.refresh_token != account.refresh_token
    assert await me(client, fresh.access_token) == 200
    await age_spent_tokens(database, timedelta(seconds=31))
    reused = await refresh(client, account.refresh_token)
    assert (reused.status_code, reused.json()["code"]) == (401, "token_reused")
    assert (await refresh(client, fresh.refresh_token)).status_code == 401
    assert await me(client, fresh.access_token) == 401


async def test_a_second_tab_may_refresh_within_the_grace(
    client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    answers = await asyncio.gather(*(refresh(client, account.refresh_token) for _ in range(4)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["refresh_token"] for answer in answers}) == 4
    async with database.reading() as session:
        families = (await session.execute(select(RefreshToken.family).distinct())).scalars().all()
    assert len(families) == 1
    await age_spent_tokens(database, timedelta(seconds=29))
    assert (await refresh(client, account.refresh_token)).status_code == 200


async def test_other_sessions_survive_a_reuse(client: httpx.AsyncClient, account: Account, database: Database) -> None:
    other = account_of((await login(client, account.email)).json())
    await refresh(client, account.refresh_token)
    await age_spent_tokens(database, timedelta(seconds=31))
    assert (await refresh(client, account.refresh_token)).json()["code"] == "token_reused"
    assert (await refresh(client, other.refresh_token)).status_code == 200


async def test_an_expired_or_unknown_refresh_token_is_401(
    client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    assert (await refresh(client, "nothing of ours")).status_code == 401
    assert (await client.post("/api/auth/refresh")).status_code == 401
    async with database.transaction() as session:
        await session.execute(update(RefreshToken).values(expires_at=func.now()))
    assert (await refresh(client, account.refresh_token)).status_code == 401


async def test_tokens_are_stored_as_hashes_only(account: Account, database: Database) -> None:
    async with database.reading() as session:
        row = (await session.execute(select(RefreshToken))).scalar_one()
        user = (await session.execute(select(User))).scalar_one()
    assert account.refresh_token.encode() not in row.token_hash
    assert len(row.token_hash) == 32
    assert user.password_hash.startswith("$argon2id$")


async def test_logout_ends_the_session_at_once_and_is_always_204(client: httpx.AsyncClient, account: Account) -> None:
    for _ in range(2):
        answer = await client.post("/api/auth/logout", json={"refresh_token": account.refresh_token})
        assert answer.status_code == 204
    assert (await refresh(client, account.refresh_token)).status_code == 401
    assert await me(client, account.access_token) == 401
    assert (await client.post("/api/auth/logout", json={"refresh_token": "x"})).status_code == 204
    assert (await client.post("/api/auth/logout")).status_code == 204


async def test_a_rotation_beside_a_logout_leaves_no_session(client: httpx.AsyncClient, account: Account) -> None:
    rotated, _ = await asyncio.gather(
        refresh(client, account.refresh_token),
        client.post("/api/auth/logout", json={"refresh_token": account.refresh_token}),
    )
    if rotated.status_code == 200:
        assert (await refresh(client, rotated.json()["refresh_token"])).status_code == 401
        assert await me(client, rotated.json()["access_token"]) == 401


async def test_browsers_get_and_send_the_refresh_token_as_cookie(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/auth/register", json={"email": "b@example.com", "password": PASSWORD})
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"studio_refresh={answer.json()['refresh_token']};")
    attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert attributes >= {"httponly", "samesite=strict", "path=/api/auth", "max-age=1209600"}
    assert "secure" not in attributes
    assert (await client.post("/api/auth/refresh")).status_code == 200
    ours = {"Origin": "http://localhost:8000"}
    assert (await client.post("/api/auth/refresh", headers=ours)).status_code == 200
    foreign = await client.post("/api/auth/refresh", headers={"Origin": "http://user1-project1.localhost:8080"})
    assert (foreign.status_code, foreign.json()["code"]) == (403, "foreign_origin")
    assert (await client.post("/api/auth/logout")).status_code == 204
    assert not client.cookies
    assert (await client.post("/api/auth/refresh")).status_code == 401


class TestOnHttps:
    @pytest.fixture
    def config(self, config: ApiConfig) -> ApiConfig:
        return ApiConfig(
            secret_key=config.secret_key,
            public_url="https://studio.example.com",
            preview_domain="preview.example.com",
            preview_port=None,
        )

    async def test_the_cookie_is_secure(self, client: httpx.AsyncClient) -> None:
        answer = await client.post("/api/auth/register", json={"email": "b@example.com", "password": PASSWORD})
        assert "secure" in answer.headers["set-cookie"].lower()
        assert answer.headers["strict-transport-security"].startswith("max-age=")


async def test_bad_access_tokens_are_401(client: httpx.AsyncClient, account: Account, services: Services) -> None:
    key = services.secrets.derive("access-token")
    claims = jwt.decode(account.access_token, key, algorithms=["HS256"])
    forged = {
        "expired": jwt.encode(claims | {"exp": int(time.time()) - 1}, key, "HS256"),
        "other type": jwt.encode(claims | {"typ": "preview"}, key, "HS256"),
        "other key": jwt.encode(claims, b"0" * 32, "HS256"),
        "unsigned": jwt.encode(claims, "", "none"),
        "other user": jwt.encode(claims | {"sub": str(account.user_id + 1)}, key, "HS256"),
        "no session": jwt.encode(claims | {"jti": "nothing"}, key, "HS256"),
        "no expiry": jwt.encode({name: claims[name] for name in claims if name != "exp"}, key, "HS256"),
        "rubbish": "rubbish",
    }
    for kind, token in forged.items():
        assert await me(client, token) == 401, kind
    answer = await client.get("/api/users/me")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert (await client.get("/api/users/me", headers={"Authorization": "Basic YTpi"})).status_code == 401


async def test_a_disabled_user_is_out_at_once(client: httpx.AsyncClient, account: Account, database: Database) -> None:
    key = (await client.post("/api/users/me/api-keys", json={"name": "k"}, headers=account.headers)).json()["key"]
    async with database.transaction() as session:
        await session.execute(update(User).where(User.id == account.user_id).values(is_active=False))
    assert await me(client, account.access_token) == 401
    assert await me(client, key) == 401
    assert (await refresh(client, account.refresh_token)).status_code == 401
    async with database.transaction() as session:
        await session.delete(await session.get_one(User, account.user_id))
    assert await me(client, account.access_token) == 401


async def test_a_ticket_is_issued_to_who_is_signed_in(
    client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    answer = await client.post("/api/auth/ticket", json={}, headers=account.headers)
    assert answer.status_code == 200
    assert set(answer.json()) == {"ticket", "expires_in"}
    assert answer.json()["expires_in"] == 30
    async with database.reading() as session:
        left = await session.execute(select(func.extract("epoch", Ticket.expires_at - func.now())))
    assert 25 < left.scalar_one() <= 30
    assert (await client.post("/api/auth/ticket", headers=account.headers)).status_code == 200
    assert (await client.post("/api/auth/ticket", json={})).status_code == 401
    assert (await client.post("/api/auth/ticket", json={"user_id": 1}, headers=account.headers)).status_code == 422


@pytest.mark.parametrize(("end", "ending"), ENDS)
async def test_a_ticket_ends_with_what_it_was_asked_by(
    client: httpx.AsyncClient, account: Account, database: Database, end: End, ending: frozenset[str]
) -> None:
    tickets = {kind: shown for kind, shown in (await passes(client, account)).items() if shown.params}
    await end(client, account, database)
    for kind, shown in tickets.items():
        answer = await client.get("/api/projects/1/events", params=shown.params)
        assert answer.status_code == (401 if kind in ending else 404), kind


async def test_a_password_change_ends_every_other_session(
    client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    other = account_of((await login(client, account.email)).json())
    await client.post("/api/auth/ticket", json={}, headers=other.headers)
    body = {"current": PASSWORD, "new": "another long password"}
    answer = await client.post("/api/users/me/password", json=body, headers=account.headers)
    assert (answer.status_code, answer.content) == (204, b"")
    assert await me(client, account.access_token) == 200
    assert (await refresh(client, account.refresh_token)).status_code == 200
    assert await me(client, other.access_token) == 401
    assert (await refresh(client, other.refresh_token)).status_code == 401
    async with database.reading() as session:
        assert (await session.execute(select(func.count()).select_from(Ticket))).scalar_one() == 0
    assert (await login(client, account.email)).status_code == 401
    assert (await login(client, account.email, "another long password")).status_code == 200


async def test_a_password_change_needs_the_current_one_and_is_throttled(
    client: httpx.AsyncClient, account: Account
) -> None:
    for _ in range(10):
        answer = await client.post(
            "/api/users/me/password", json={"current": "wrong", "new": PASSWORD}, headers=account.headers
        )
        assert (answer.status_code, answer.json()["code"]) == (401, "bad_credentials")
    answer = await client.post(
        "/api/users/me/password", json={"current": PASSWORD, "new": PASSWORD}, headers=account.headers
    )
    assert answer.status_code == 429
