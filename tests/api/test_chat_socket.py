"""A chat's WebSocket, by real clients on a real server."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
import websockets
from fastapi import FastAPI
from sqlalchemy import text
from temporalio.client import Client
from websockets import ClientConnection

from api import sse
from api.temporal import TemporalGateway
from storage.engine import Database
from tests.api.agent_stand import AgentStand, Json, agent_stand, signals_of, until
from tests.api.passes import delete_key, log_out, passes
from tests.api.stand import browsing, serving
from tests.api.temporal_server import TemporalServer
from workflows.contracts.agent_tasks import TaskState


@pytest.fixture
def temporal(temporal_server: TemporalServer) -> TemporalGateway:
    return TemporalGateway(temporal_server.address, "default")


@pytest.fixture
async def stand(client: httpx.AsyncClient, database: Database) -> AgentStand:
    return await agent_stand(client, database)


def url_of(stand: AgentStand, chat: str, **query: object) -> str:
    return f"ws{str(stand.client.base_url).removeprefix('http').rstrip('/')}/api/chat/{chat}/ws?{urlencode(query)}"


@asynccontextmanager
async def connected(stand: AgentStand, chat: str, **query: object) -> AsyncIterator[ClientConnection]:
    """An open socket, by header, within bounds of time."""
    url = url_of(stand, chat, **query)
    async with (
        asyncio.timeout(30),
        websockets.connect(url, additional_headers=stand.owner.headers, max_size=None) as socket,
    ):
        yield socket


async def heard(socket: ClientConnection) -> Json:
    return dict(json.loads(await socket.recv()))


async def say(socket: ClientConnection, **frame: object) -> None:
    await socket.send(json.dumps(frame))


async def test_a_conversation(stand: AgentStand) -> None:
    chat = await stand.chat()
    async with connected(stand, chat) as socket, connected(stand, chat) as other_tab:
        ready = await heard(socket)
        assert ready == {"type": "ready", "chat_id": chat, "last_seq": 0}
        assert await heard(other_tab) == ready
        await say(socket, type="message", content="Hello", client_message_id="1")
        state, message = await heard(socket), await heard(socket)
        assert (state["type"], state["data"]["state"], state["seq"]) == ("task.state", "queued", 1)
        assert (message["type"], message["data"]["content"], message["data"]["chat_id"]) == (
            "message.final",
            "Hello",
            chat,
        )
        assert set(message) == {"seq", "type", "project_id", "task_id", "at", "data"}
        await stand.tell(state["task_id"], "Hi")
        assert (await heard(socket))["data"] == {"step": 1, "text": "Hi"}
        assert [(await heard(other_tab))["seq"] for _ in range(3)] == [1, 2, 3]
        await say(socket, type="ping")
        assert await heard(socket) == {"type": "pong"}
    async with connected(stand, chat, since=1) as socket:
        assert await heard(socket) == {"type": "ready", "chat_id": chat, "last_seq": 1}
        assert [(await heard(socket))["seq"] for _ in range(2)] == [2, 3]


async def test_only_this_chats_events_come(stand: AgentStand) -> None:
    chat = await stand.chat()
    early = await stand.begin(chat_id=chat)
    await stand.set_state(early["id"], TaskState.COMPLETED)
    async with connected(stand, chat, since=3) as socket:
        assert (await heard(socket))["last_seq"] == 3
        elsewhere = await stand.begin()
        await stand.tell(elsewhere["id"], "not here")
        await stand.tell(None, "nor this")
        await stand.tell(early["id"], "of a task that began before")
        assert (await heard(socket))["data"]["text"] == "of a task that began before"
        later = await stand.begin(chat_id=chat)
        await stand.tell(later["id"], "of one that began after")
        assert [(await heard(socket))["type"] for _ in range(3)] == ["task.state", "message.final", "text.delta"]


async def test_since_beyond_the_log_is_now(stand: AgentStand) -> None:
    chat = await stand.chat()
    async with connected(stand, chat, since=10**9) as socket:
        assert (await heard(socket))["last_seq"] == 0
        await stand.begin(chat_id=chat)
        assert (await heard(socket))["seq"] == 1


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ("not json", "bad_frame"),
        ("[]", "bad_frame"),
        ("[" * 50_000, "bad_frame"),
        (b"bytes", "bad_frame"),
        ('{"type": "shout"}', "unknown_type"),
        ('{"type": ["message"]}', "unknown_type"),
        ('{"type": "message"}', "validation_failed"),
        ('{"type": "message", "content": " "}', "validation_failed"),
        ('{"type": "message", "content": "\\u0000"}', "validation_failed"),
        ('{"type": "message", "content": "\\ud800"}', "validation_failed"),
        ('{"type": "message", "content": "x", "user_id": 1}', "validation_failed"),
    ],
)
async def test_what_makes_no_sense_is_said_and_the_socket_stays(
    stand: AgentStand, sent: str | bytes, code: str
) -> None:
    async with connected(stand, await stand.chat()) as socket:
        await heard(socket)
        await socket.send(sent)
        answer = await heard(socket)
        assert (answer["type"], answer["code"], bool(answer["detail"])) == ("error", code, True)
        await say(socket, type="ping")
        assert await heard(socket) == {"type": "pong"}


async def test_a_refused_message_is_named(stand: AgentStand) -> None:
    chat = await stand.chat()
    async with connected(stand, chat) as socket:
        await heard(socket)
        for number in ("1", "1", "2"):  # the same again is no second one, and no error
            await say(socket, type="message", content="x", client_message_id=number)
        frames = [await heard(socket) for _ in range(3)]
    assert sorted(frame["type"] for frame in frames) == ["error", "message.final", "task.state"]
    [error] = [frame for frame in frames if frame["type"] == "error"]
    assert (error["code"], error["client_message_id"]) == ("chat_busy", "2")


async def test_cancel_is_for_the_task_whose_turn_it_is(stand: AgentStand, temporal: TemporalGateway) -> None:
    chat = await stand.chat()
    async with connected(stand, chat) as socket:
        await heard(socket)
        await say(socket, type="cancel")  # nothing runs
        running = await stand.begin(chat_id=chat)
        queued = await stand.begin(chat_id=chat, on_busy="enqueue")
        await stand.set_state(running["id"], TaskState.RUNNING)
        await say(socket, type="cancel")
        await say(socket, type="cancel")

        async def told() -> bool:
            return await signals_of(await temporal.client(), running["id"]) == ["cancel", "cancel"]

        await until(told)
        assert await signals_of(await temporal.client(), queued["id"]) == []


class SlowTemporal(TemporalGateway):
    """Takes a second to say that it is there."""

    async def require(self) -> Client:
        await asyncio.sleep(1)
        return await super().require()


class TestLeaving:
    @pytest.fixture
    def temporal(self, temporal_server: TemporalServer) -> TemporalGateway:
        return SlowTemporal(temporal_server.address, "default")

    async def test_it_stops_nothing(self, stand: AgentStand, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither the client's own leaving nor being shown out takes back what was asked before."""
        chats = [await stand.chat() for _ in range(3)]
        async with connected(stand, chats[0]) as closing:
            await say(closing, type="message", content="x")
        async with connected(stand, chats[1]) as aborting:
            await say(aborting, type="message", content="x")
            await asyncio.sleep(0.2)
            aborting.transport.abort()
        monkeypatch.setattr(sse, "ACCESS_CHECK_S", 0.2)
        async with connected(stand, chats[2]) as shown_out:
            await say(shown_out, type="message", content="x")
            await log_out(stand.client, stand.owner, stand.database)
            await shown_out.wait_closed()
            assert shown_out.close_code == 4401

        async def all_are_sent() -> bool:
            async with stand.database.reading() as session:
                rows = await session.execute(text("SELECT DISTINCT chat_id FROM messages"))
            return len(rows.all()) == len(chats)

        await until(all_are_sent)


async def test_a_frame_too_large_closes(stand: AgentStand) -> None:
    async with connected(stand, await stand.chat()) as socket:
        await heard(socket)
        await socket.send("x" * (17 * 1024 * 1024))
        await socket.wait_closed()
        assert socket.close_code == 1009


async def test_cuts_lose_and_double_nothing(stand: AgentStand) -> None:
    chat = await stand.chat()
    task = await stand.begin(chat_id=chat)
    count = 300
    choice = random.Random(7)

    async def write() -> None:
        for number in range(count):
            await stand.tell(task["id"], str(number))

    writing = asyncio.create_task(write())
    seen: list[int] = []
    texts: list[str] = []
    last, cuts = 0, 0
    while len(texts) < count:
        async with connected(stand, chat, since=last) as socket:
            assert (await heard(socket))["last_seq"] == last
            for _ in range(choice.randint(0, 12)):
                if len(texts) == count:
                    break
                event = await heard(socket)
                last = event["seq"]
                seen.append(last)
                texts += [event["data"]["text"]] if event["type"] == "text.delta" else []
            cuts += 1
            if choice.random() < 0.5:
                socket.transport.abort()
    await writing
    assert cuts > 20
    assert seen == sorted(set(seen))
    assert texts == [str(number) for number in range(count)]


async def test_it_ends_with_the_callers_access(stand: AgentStand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "ACCESS_CHECK_S", 0.1)
    chat = await stand.chat()
    kinds = await passes(stand.client, stand.owner)
    for end, kind in ((delete_key, "key"), (log_out, "session")):
        by_header, by_ticket = kinds[kind], kinds[f"{kind}'s ticket"]
        async with (
            asyncio.timeout(20),
            websockets.connect(url_of(stand, chat), additional_headers=by_header.headers) as first,
            websockets.connect(url_of(stand, chat, **by_ticket.params)) as second,
        ):
            assert (await heard(first))["type"] == (await heard(second))["type"] == "ready"
            await end(stand.client, stand.owner, stand.database)
            for socket in (first, second):
                await socket.wait_closed()
                assert (socket.close_code, socket.close_reason) == (4401, "unauthenticated")


@pytest.mark.parametrize("gone", ["DELETE FROM chats", "DELETE FROM projects"])
async def test_it_ends_with_its_chat(stand: AgentStand, monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    monkeypatch.setattr(sse, "ACCESS_CHECK_S", 0.1)
    async with connected(stand, await stand.chat()) as socket:
        await heard(socket)
        async with stand.database.transaction() as session:
            await session.execute(text(gone))
        await socket.wait_closed()
        assert (socket.close_code, socket.close_reason) == (4404, "not_found")


async def test_a_server_that_stops_says_so(app: FastAPI, database: Database) -> None:
    async with serving(app) as address, browsing(address) as client:
        stand = await agent_stand(client, database)
        socket = await websockets.connect(url_of(stand, await stand.chat()), additional_headers=stand.owner.headers)
        await heard(socket)
    async with asyncio.timeout(20):
        await socket.wait_closed()
    assert socket.close_code == 1012


async def refused(url: str, **options: Any) -> tuple[int, str]:
    with pytest.raises(websockets.InvalidStatus) as refusal:
        async with asyncio.timeout(20), websockets.connect(url, **options):
            pass
    response = refusal.value.response
    return response.status_code, json.loads(response.body or b"{}").get("code", "")


async def test_it_is_the_owners_alone(stand: AgentStand) -> None:
    chat = await stand.chat()
    other = await agent_stand(stand.client, stand.database)
    url = url_of(stand, chat)
    assert await refused(url, additional_headers=other.owner.headers) == (404, "not_found")
    missing = url_of(stand, "0197a3a0-0000-7000-8000-000000000001")
    assert await refused(missing, additional_headers=stand.owner.headers) == (404, "not_found")
    assert await refused(url) == (401, "unauthenticated")
    made = await stand.call("POST", "/api/users/me/api-keys", {"name": "k", "scopes": ["read"]})
    reading = {"Authorization": f"Bearer {made.json()['key']}"}
    assert await refused(url, additional_headers=reading) == (403, "missing_scope")
    tickets = [
        (await stand.client.post("/api/auth/ticket", json={}, headers=headers)).json()["ticket"]
        for headers in (other.owner.headers, reading, stand.owner.headers)
    ]
    assert await refused(url_of(stand, chat, ticket=tickets[0])) == (404, "not_found")
    assert await refused(url_of(stand, chat, ticket=tickets[1])) == (403, "missing_scope")
    async with asyncio.timeout(20), websockets.connect(url_of(stand, chat, ticket=tickets[2])) as socket:
        assert (await heard(socket))["type"] == "ready"
    assert await refused(url_of(stand, chat, ticket=tickets[2])) == (401, "unauthenticated")  # spent
    evil = {"origin": websockets.Origin("https://evil.example.com"), "additional_headers": stand.owner.headers}
    assert await refused(url, **evil) == (403, "bad_origin")
    assert (await refused(url_of(stand, chat, since=-1), additional_headers=stand.owner.headers))[0] == 422
