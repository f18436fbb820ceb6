import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import cast
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sqlalchemy import delete, func, select, update
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from api import idempotency
from api.temporal import TemporalGateway
from storage import idempotency as stored
from storage.engine import Database
from storage.tables import ApiKey, IdempotencyKey, LoginFailure, Project, User
from tests.api.stand import PASSWORD, Account, register
from tests.storage.records import new_project
from workflows.contracts.errors import ThrottledError, UnavailableError


class Note(BaseModel):
    text: str


class Shop:
    """Makes something in a transaction of its own, as routes do, and misbehaves before it or after it."""

    def __init__(self, app: FastAPI, database: Database) -> None:
        self.database = database
        self.fail_with: Exception | None = None
        self.before: list[asyncio.Event] = []
        self.reached = asyncio.Event()
        app.post("/orders", status_code=202)(self.make)

    async def make(self, note: Note, claim: idempotency.HeldClaim) -> dict[str, str]:
        if self.before:
            gate = self.before.pop()
            self.reached.set()
            await gate.wait()
        async with self.database.transaction() as session:
            made = await stored.made(session, claim)
            if made is None:
                made = uuid4().hex
                session.add(LoginFailure(subject=made))
                await stored.note_made(session, claim, made)
        if self.fail_with is not None:
            raise self.fail_with
        return {"order": made}

    async def orders(self) -> list[str]:
        async with self.database.reading() as session:
            return list(await session.scalars(select(LoginFailure.subject).order_by(LoginFailure.id)))


class Desk:
    """Counts the notes that were really taken; misbehaves when it is told to."""

    def __init__(self, app: FastAPI) -> None:
        self.taken: list[str] = []
        self.fail_with: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.busy = asyncio.Event()
        app.post("/notes", status_code=202)(self.take)
        app.post("/streams")(self.stream)

    async def take(self, note: Note, response: Response) -> dict[str, int]:
        self.taken.append(note.text)
        self.busy.set()
        await self.gate.wait()
        if self.fail_with is not None:
            raise self.fail_with
        response.headers["Location"] = f"/notes/{len(self.taken)}"
        return {"number": len(self.taken)}

    async def stream(self, note: Note) -> StreamingResponse:
        self.taken.append(note.text)

        async def pieces() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"

        return StreamingResponse(pieces(), media_type="text/event-stream")


@pytest.fixture
def desk(app: FastAPI) -> Desk:
    return Desk(app)


async def take(client: httpx.AsyncClient, account: Account, text: str, key: str = "k1") -> httpx.Response:
    return await client.post("/notes", json={"text": text}, headers={**account.headers, "Idempotency-Key": key})


@pytest.fixture
def shop(app: FastAPI, database: Database) -> Shop:
    return Shop(app, database)


async def order(client: httpx.AsyncClient, account: Account, text: str, key: str | None = "k1") -> httpx.Response:
    keyed = {} if key is None else {"Idempotency-Key": key}
    return await client.post("/orders", json={"text": text}, headers={**account.headers, **keyed})


async def age_keys(database: Database, age: timedelta, **values: object) -> None:
    async with database.transaction() as session:
        await session.execute(update(IdempotencyKey).values(created_at=func.now() - age, **values))


async def rows(database: Database) -> int:
    async with database.reading() as session:
        return (await session.execute(select(func.count()).select_from(IdempotencyKey))).scalar_one()


async def test_the_first_answer_comes_again(desk: Desk, client: httpx.AsyncClient, account: Account) -> None:
    first = await take(client, account, "a")
    again = await take(client, account, "a")
    assert (first.status_code, first.json(), first.headers["location"]) == (202, {"number": 1}, "/notes/1")
    assert (again.status_code, again.content, again.headers["location"]) == (202, first.content, "/notes/1")
    assert again.headers["content-type"] == first.headers["content-type"]
    assert (again.headers["idempotency-replayed"], "idempotency-replayed" in first.headers) == ("true", False)
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert desk.taken == ["a"]


async def test_another_body_or_path_is_refused(desk: Desk, client: httpx.AsyncClient, account: Account) -> None:
    await take(client, account, "a")
    headers = {**account.headers, "Idempotency-Key": "k1"}
    for answer in (
        await take(client, account, "b"),
        await client.post("/streams", json={"text": "a"}, headers=headers),
    ):
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    assert desk.taken == ["a"]


async def test_keys_are_each_user_s_own(desk: Desk, client: httpx.AsyncClient, account: Account) -> None:
    other = await register(client)
    assert (await take(client, account, "a")).json() == {"number": 1}
    assert (await take(client, other, "b")).json() == {"number": 2}


async def test_two_at_once_do_the_work_once(desk: Desk, client: httpx.AsyncClient, account: Account) -> None:
    desk.gate.clear()
    both = asyncio.gather(take(client, account, "a"), take(client, account, "a"))
    await asyncio.sleep(0.4)
    desk.gate.set()
    first, second = await both
    assert (first.status_code, first.content) == (second.status_code, second.content) == (202, b'{"number":1}')
    assert desk.taken == ["a"]


async def test_waiting_for_the_first_is_bounded(
    desk: Desk, client: httpx.AsyncClient, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "WAIT_S", 0.3)
    desk.gate.clear()
    first = asyncio.create_task(take(client, account, "a"))
    await desk.busy.wait()
    second = await take(client, account, "a")
    assert (second.status_code, second.json()["code"]) == (409, "idempotency_in_progress")
    assert second.json()["retryable"] is True
    desk.gate.set()
    assert (await first).status_code == 202


@pytest.mark.parametrize(
    "failure", [UnavailableError("away"), ThrottledError("slow", retry_after=1), ValueError("bug")]
)
async def test_a_failed_attempt_does_not_poison_the_key(
    desk: Desk, client: httpx.AsyncClient, account: Account, database: Database, failure: Exception
) -> None:
    desk.fail_with = failure
    assert (await take(client, account, "a")).status_code in {429, 500, 503}
    assert await rows(database) == 0
    desk.fail_with = None
    assert (await take(client, account, "a")).json() == {"number": 2}


async def test_an_attempt_that_died_is_taken_over_after_a_while(
    desk: Desk, client: httpx.AsyncClient, account: Account, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "WAIT_S", 0.2)
    assert (await take(client, account, "a")).status_code == 202
    async with database.transaction() as session:
        await session.execute(update(IdempotencyKey).values(status=None, body_encrypted=None))
    assert (await take(client, account, "a")).json()["code"] == "idempotency_in_progress"
    async with database.transaction() as session:
        await session.execute(update(IdempotencyKey).values(created_at=func.now() - timedelta(seconds=31)))
    assert (await take(client, account, "a")).json() == {"number": 2}


async def test_an_attempt_that_died_after_its_commit_is_not_repeated(
    shop: Shop, client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    first = await order(client, account, "a")
    await age_keys(database, timedelta(seconds=31), status=None, headers=None, body_encrypted=None)
    again = await order(client, account, "a")
    assert (again.status_code, again.json()) == (202, first.json())
    assert "idempotency-replayed" not in again.headers
    assert (await order(client, account, "a")).headers["idempotency-replayed"] == "true"
    assert await shop.orders() == [first.json()["order"]]


async def test_an_attempt_that_failed_after_its_commit_is_gone_on_with_at_once(
    shop: Shop, client: httpx.AsyncClient, account: Account
) -> None:
    shop.fail_with = UnavailableError("away")
    assert [(await order(client, account, "a")).status_code for _ in range(2)] == [503, 503]
    [made] = await shop.orders()
    shop.fail_with = None
    other = await order(client, account, "b")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert (await order(client, account, "a")).json() == {"order": made}
    assert await shop.orders() == [made]


async def test_what_was_made_is_forgotten_with_its_key(
    shop: Shop, client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    first = await order(client, account, "a")
    await age_keys(database, timedelta(hours=24, seconds=1), status=None)
    second = await order(client, account, "a")
    assert await shop.orders() == [first.json()["order"], second.json()["order"]]


async def test_without_a_key_each_request_makes_its_own(
    shop: Shop, client: httpx.AsyncClient, account: Account
) -> None:
    for _ in range(2):
        assert (await order(client, account, "a", key=None)).status_code == 202
    assert len(set(await shop.orders())) == 2


async def test_an_attempt_that_was_thought_dead_makes_nothing_beside_its_successor(
    shop: Shop, client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    late = asyncio.Event()
    shop.before = [late]
    first = asyncio.create_task(order(client, account, "a"))
    await shop.reached.wait()
    await age_keys(database, timedelta(seconds=31))
    second = await order(client, account, "a")
    assert second.status_code == 202
    late.set()
    refused = await first
    assert (refused.status_code, refused.json()["code"]) == (409, "idempotency_in_progress")
    assert (await order(client, account, "a")).json() == second.json()
    assert await shop.orders() == [second.json()["order"]]


async def test_an_attempt_and_its_successor_at_once_make_one_thing(
    shop: Shop, client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    gates = [asyncio.Event(), asyncio.Event()]
    shop.before = list(gates)
    first = asyncio.create_task(order(client, account, "a"))
    await shop.reached.wait()
    shop.reached.clear()
    await age_keys(database, timedelta(seconds=31))
    second = asyncio.create_task(order(client, account, "a"))
    await shop.reached.wait()
    for gate in gates:
        gate.set()
    statuses = {answer.status_code for answer in await asyncio.gather(first, second)}
    assert 202 in statuses
    assert statuses <= {202, 409}
    assert len(await shop.orders()) == 1


async def test_a_slow_attempt_keeps_its_claim(
    desk: Desk, client: httpx.AsyncClient, account: Account, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "HEARTBEAT_S", 0.05)
    desk.gate.clear()
    first = asyncio.create_task(take(client, account, "a"))
    await desk.busy.wait()
    async with database.transaction() as session:
        await session.execute(update(IdempotencyKey).values(created_at=func.now() - timedelta(minutes=9)))
    await asyncio.sleep(0.3)
    async with database.reading() as session:
        age = await session.execute(select(func.extract("epoch", func.now() - IdempotencyKey.created_at)))
        assert age.scalar_one() < 5
    desk.gate.set()
    assert (await first).status_code == 202


async def test_a_key_is_free_again_after_a_day(
    desk: Desk, client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    await take(client, account, "a")
    async with database.transaction() as session:
        await session.execute(update(IdempotencyKey).values(created_at=func.now() - timedelta(hours=24, seconds=1)))
    assert (await take(client, account, "b")).json() == {"number": 2}


async def test_a_stream_passes_through_and_is_not_kept(
    desk: Desk, client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    headers = {**account.headers, "Idempotency-Key": "k1"}
    for _ in range(2):
        answer = await client.post("/streams", json={"text": "a"}, headers=headers)
        assert answer.content == b"data: 1\n\n"
    assert desk.taken == ["a", "a"]
    async with asyncio.timeout(5):
        while await rows(database):  # noqa: ASYNC110 -- the row goes after the last byte, and no event of ours tells of it
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(("key", "status"), [("k" * 200, 202), ("k" * 201, 422), ("", 422)])
async def test_a_key_has_1_to_200_characters(
    desk: Desk, client: httpx.AsyncClient, account: Account, key: str, status: int
) -> None:
    answer = await take(client, account, "a", key)
    assert answer.status_code == status
    assert status == 202 or answer.json()["code"] == "bad_idempotency_key"


async def test_a_refused_credential_is_neither_kept_nor_answered_from_the_store(
    desk: Desk, client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    body, key = {"name": "ci"}, {"Idempotency-Key": "k1"}
    url = "/api/users/me/api-keys"
    assert (await client.post(url, json=body, headers={**key, "Authorization": "Bearer no"})).status_code == 401
    made = await client.post(url, json=body, headers={**key, **account.headers})
    assert made.status_code == 201
    async with database.transaction() as session:
        await session.execute(update(User).values(is_active=False))
    assert (await client.post(url, json=body, headers={**key, **account.headers})).status_code == 401


async def test_secret_answers_are_stored_encrypted(
    client: httpx.AsyncClient, account: Account, database: Database
) -> None:
    headers = {**account.headers, "Idempotency-Key": "k1"}
    answers = [await client.post("/api/users/me/api-keys", json={"name": "ci"}, headers=headers) for _ in range(2)]
    key = answers[0].json()["key"]
    assert answers[1].json()["key"] == key
    async with database.reading() as session:
        row = (await session.execute(select(IdempotencyKey))).scalar_one()
        assert (await session.execute(select(func.count()).select_from(ApiKey))).scalar_one() == 1
    assert row.body_encrypted is not None
    assert key.encode() not in row.body_encrypted
    assert key not in str(row.headers)


async def test_it_works_before_a_login_too(client: httpx.AsyncClient, database: Database) -> None:
    body = {"email": "a@example.com", "password": PASSWORD}
    headers = {"Idempotency-Key": "k1"}
    first = await client.post("/api/auth/register", json=body, headers=headers)
    client.cookies.clear()
    again = await client.post("/api/auth/register", json=body, headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert first.headers["set-cookie"] == again.headers["set-cookie"]
    async with database.reading() as session:
        row = (await session.execute(select(IdempotencyKey))).scalar_one()
    assert "studio_refresh" not in str(row.headers)


class DeafTemporal(TemporalGateway):
    """Is there when it is asked, and away when a workflow is to be started."""

    async def require(self) -> Client:
        return cast("Client", self)

    async def start_workflow(self, *_: object, **__: object) -> None:
        raise RPCError("away", RPCStatusCode.UNAVAILABLE, b"")


class TestProjects:
    @pytest.fixture
    def temporal(self) -> TemporalGateway:
        return DeafTemporal("127.0.0.1:1", "default")

    async def make(self, client: httpx.AsyncClient, account: Account, path: str = "/api/projects") -> httpx.Response:
        headers = {**account.headers, "Idempotency-Key": path}
        return await client.post(path, json={"name": "one"}, headers=headers)

    async def count(self, database: Database) -> int:
        async with database.reading() as session:
            return (await session.execute(select(func.count()).select_from(Project))).scalar_one()

    async def test_an_attempt_that_died_has_made_its_project(
        self, client: httpx.AsyncClient, account: Account, database: Database
    ) -> None:
        source = await new_project(database, account.user_id)
        for number, path in enumerate(("/api/projects", f"/api/projects/{source}/fork"), 2):
            first = await self.make(client, account, path)
            await age_keys(database, timedelta(seconds=31), status=None, headers=None, body_encrypted=None)
            again = await self.make(client, account, path)
            assert (first.status_code, again.status_code) == (202, 202)
            assert again.headers["location"] == first.headers["location"]
            assert again.json()["id"] == first.json()["id"]
            assert "idempotency-replayed" not in again.headers
            assert await self.count(database) == number

    async def test_a_project_that_was_deleted_meanwhile_is_not_made_again(
        self, client: httpx.AsyncClient, account: Account, database: Database
    ) -> None:
        await self.make(client, account)
        await age_keys(database, timedelta(seconds=31), status=None, headers=None, body_encrypted=None)
        async with database.transaction() as session:
            await session.execute(delete(Project))
        again = await self.make(client, account)
        assert (again.status_code, again.json()["code"]) == (409, "project_deleted")
        assert await self.count(database) == 0
