import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from httpx_sse import EventSource, ServerSentEvent
from sqlalchemy import text

from api import sse
from api.services import Services
from storage import event_log, operations, projects
from storage.engine import Database
from tests.api.passes import ENDS, End, delete_key, disable_user, passes
from tests.api.stand import Account, browsing, register, serving
from tests.storage.records import new_project
from workflows.contracts.events import EventType, NewEvent
from workflows.contracts.operations import OperationKind


@pytest.fixture
async def project(database: Database, account: Account) -> int:
    return await new_project(database, account.user_id)


async def append(database: Database, project_id: int, *words: str, **fields: Any) -> None:
    async with database.transaction() as session:
        events = [
            NewEvent(
                project_id=project_id, type=EventType.PROJECT_STATE, data={"state": word, "reason": None}, **fields
            )
            for word in words
        ]
        event_log.append(session, events)


@asynccontextmanager
async def listening(
    client: httpx.AsyncClient, project_id: int, account: Account | None, **request: Any
) -> AsyncIterator[httpx.Response]:
    headers = {**(account.headers if account else {}), **request.pop("headers", {})}
    async with (
        asyncio.timeout(20),
        client.stream("GET", f"/api/projects/{project_id}/events", headers=headers, **request) as answer,
    ):
        yield answer


async def take(answer: httpx.Response, count: int) -> list[ServerSentEvent]:
    taken: list[ServerSentEvent] = []
    async with aclosing(EventSource(answer).aiter_sse()) as events:
        async for event in events:
            taken.append(event)
            if len(taken) == count:
                break
    return taken


def ids(events: list[ServerSentEvent]) -> list[int]:
    return [int(event.id) for event in events]


async def ended(answer: httpx.Response) -> str:
    """What comes until the stream ends by itself; a body cut short would raise."""
    return (await answer.aread()).decode()


async def test_a_frame_is_as_promised_byte_for_byte(
    client: httpx.AsyncClient, account: Account, project: int, database: Database
) -> None:
    task = "0197a3a0-0000-7000-8000-000000000001"
    await append(database, project, "ready")
    await append(database, project, "failed", task_id=task)
    async with listening(client, project, account) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache, no-transform"
        assert answer.headers["x-accel-buffering"] == "no"
        text_lines = answer.aiter_lines()
        lines = [await anext(text_lines) for _ in range(8)]

    assert (lines[0], lines[1], lines[3]) == ("id: 1", "event: project.state", "")
    data = json.loads(lines[2].removeprefix("data: "))
    assert data.pop("at").endswith("Z")
    assert data == {
        "seq": 1,
        "type": "project.state",
        "project_id": project,
        "data": {"state": "ready", "reason": None},
    }
    assert json.loads(lines[6].removeprefix("data: "))["task_id"] == task


async def test_what_was_is_followed_by_what_comes(
    client: httpx.AsyncClient, account: Account, project: int, database: Database
) -> None:
    await append(database, project, "a", "b")
    async with listening(client, project, account, params={"since": 1}) as answer:
        taking = asyncio.create_task(take(answer, 3))
        await asyncio.sleep(0.2)
        await append(database, project, "c")
        await append(database, project, "d")
        assert ids(await taking) == [2, 3, 4]


async def test_the_last_event_id_of_a_reconnect_wins_over_since(
    client: httpx.AsyncClient, account: Account, project: int, database: Database
) -> None:
    await append(database, project, *"abcde")
    async with listening(client, project, account, params={"since": 1}, headers={"Last-Event-ID": "3"}) as answer:
        assert ids(await take(answer, 2)) == [4, 5]
    async with listening(client, project, account, params={"since": 4}, headers={"Last-Event-ID": ""}) as answer:
        assert ids(await take(answer, 1)) == [5]


async def test_only_the_types_asked_for_come(
    client: httpx.AsyncClient, account: Account, project: int, database: Database
) -> None:
    async with listening(client, project, account, params={"types": "dev_server.stage,file.changed"}) as answer:
        await append(database, project, "ready")
        async with database.transaction() as session:
            stage = NewEvent(project_id=project, type=EventType.DEV_SERVER_STAGE, data={"stage": "probing"})
            event_log.append(session, [stage])
        assert ids(await take(answer, 1)) == [2]


@pytest.mark.parametrize(
    "request_of",
    [
        {"params": {"since": "-1"}},
        {"params": {"since": "x"}},
        {"params": {"since": str(2**63)}},
        {"params": {"types": "project.state,nonsense"}},
        {"headers": {"Last-Event-ID": "seven"}},
        {"headers": {"Last-Event-ID": "-7"}},
        {"headers": {"Last-Event-ID": "9" * 30}},
    ],
)
async def test_bad_values_are_refused(
    client: httpx.AsyncClient, account: Account, project: int, request_of: dict[str, Any]
) -> None:
    async with listening(client, project, account, **request_of) as answer:
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"


async def test_only_the_owner_gets_in(client: httpx.AsyncClient, project: int) -> None:
    stranger = await register(client)
    async with listening(client, project, stranger) as answer:
        assert answer.status_code == 404
        theirs = await ended(answer)
    async with listening(client, project + 1000, stranger) as answer:
        assert (answer.status_code, await ended(answer)) == (404, theirs)
    async with listening(client, project, None) as answer:
        assert answer.status_code == 401


async def test_a_ticket_opens_one_stream(
    client: httpx.AsyncClient, account: Account, project: int, database: Database
) -> None:
    await append(database, project, "ready")
    ticket = (await client.post("/api/auth/ticket", json={}, headers=account.headers)).json()["ticket"]
    async with listening(client, project, None, params={"ticket": ticket}) as answer:
        assert ids(await take(answer, 1)) == [1]
    async with listening(client, project, None, params={"ticket": ticket}) as answer:
        assert answer.status_code == 401


async def test_a_quiet_stream_is_kept_alive_by_comments(
    client: httpx.AsyncClient, account: Account, project: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sse.PING_S == 15
    monkeypatch.setattr(sse, "PING_S", 0.05)
    async with listening(client, project, account) as answer:
        lines = answer.aiter_lines()
        assert [await anext(lines) for _ in range(4)] == [": ping", "", ": ping", ""]


async def test_a_deleted_project_ends_the_stream_after_its_last_event(
    client: httpx.AsyncClient, account: Account, project: int, database: Database
) -> None:
    async with listening(client, project, account) as answer, aclosing(EventSource(answer).aiter_sse()) as events:
        await append(database, project, "deleting")
        assert '"deleting"' in (await anext(events)).data
        async with database.transaction() as session:  # which takes the log with it, from those that are late, too
            await projects.delete(session, project)
        assert [event async for event in events] == []


@pytest.mark.parametrize(("end", "ending"), ENDS)
async def test_access_that_ends_ends_the_streams_that_stand_on_it(  # noqa: PLR0917 -- pytest gives them by name
    client: httpx.AsyncClient,
    account: Account,
    project: int,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    end: End,
    ending: frozenset[str],
) -> None:
    monkeypatch.setattr(sse, "ACCESS_CHECK_S", 0.1)
    async with AsyncExitStack() as opened:
        streams = dict[str, asyncio.Task[str]]()
        for kind, shown in (await passes(client, account)).items():
            answer = await opened.enter_async_context(listening(client, project, None, **vars(shown)))
            assert answer.status_code == 200
            streams[kind] = asyncio.create_task(ended(answer), name=kind)
        await asyncio.sleep(0.4)
        assert not [kind for kind, stream in streams.items() if stream.done()]
        await end(client, account, database)
        await asyncio.gather(*(streams[kind] for kind in ending))
        await asyncio.sleep(0.4)
        assert {kind for kind, stream in streams.items() if stream.done()} == ending
        for stream in streams.values():
            stream.cancel()
        await asyncio.wait(streams.values())


async def test_a_project_that_vanishes_ends_the_stream(
    client: httpx.AsyncClient, account: Account, project: int, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "ACCESS_CHECK_S", 0.1)
    async with listening(client, project, account) as answer:
        ending = asyncio.create_task(ended(answer))
        await asyncio.sleep(0.4)
        assert not ending.done()
        async with database.transaction() as session:
            await session.execute(text("DELETE FROM projects"))
        await ending


async def test_a_stream_whose_client_is_slow_ends_too() -> None:
    """Access that ends while a frame is being sent: no later frame has to come for the stream to end."""
    gate = asyncio.Event()

    async def frames() -> AsyncIterator[str]:
        yield "one"
        await asyncio.sleep(3600)

    async def allowed() -> bool:
        return not gate.is_set()

    stream = sse.while_allowed(frames(), allowed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sse, "ACCESS_CHECK_S", 0.01)
        assert await anext(stream) == "one"
        gate.set()
        await asyncio.sleep(0.2)
        async with asyncio.timeout(5):
            assert [frame async for frame in stream] == []


@pytest.mark.parametrize("end", [delete_key, disable_user])
async def test_an_operations_stream_ends_with_the_callers_access(
    client: httpx.AsyncClient,
    account: Account,
    project: int,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    end: End,
) -> None:
    monkeypatch.setattr(sse, "ACCESS_CHECK_S", 0.1)
    async with database.transaction() as session:
        kind = OperationKind.PROVISION_PROJECT
        operation = await operations.create(session, user_id=account.user_id, project_id=project, kind=kind)
    shown = (await passes(client, account))["key's ticket"]
    async with (
        asyncio.timeout(20),
        client.stream("GET", f"/api/operations/{operation.id}/events", **vars(shown)) as answer,
    ):
        ending = asyncio.create_task(ended(answer))
        await asyncio.sleep(0.4)
        assert not ending.done()
        await end(client, account, database)
        assert "event: operation" in await ending


async def test_a_client_that_leaves_is_forgotten_and_finds_the_rest_later(
    client: httpx.AsyncClient, account: Account, project: int, database: Database, services: Services
) -> None:
    await append(database, project, "a")
    async with listening(client, project, account) as answer:
        assert ids(await take(answer, 1)) == [1]
        assert services.events.listener._subscriptions
    async with asyncio.timeout(5):
        while services.events.listener._subscriptions:  # noqa: ASYNC110 -- nothing tells of it
            await asyncio.sleep(0.02)
    await append(database, project, "b")
    async with listening(client, project, account, headers={"Last-Event-ID": "1"}) as answer:
        assert ids(await take(answer, 1)) == [2]


async def test_a_stopping_server_ends_its_streams_whole(app: FastAPI, database: Database) -> None:
    async with AsyncExitStack() as browser:
        async with serving(app) as address:
            client = await browser.enter_async_context(browsing(address))
            owner = await register(client)
            project_id = await new_project(database, owner.user_id)
            await append(database, project_id, "a")
            answer = await browser.enter_async_context(listening(client, project_id, owner))
            reading = asyncio.create_task(ended(answer))
            await asyncio.sleep(0.3)
            assert not reading.done()
        assert "id: 1\n" in await reading
