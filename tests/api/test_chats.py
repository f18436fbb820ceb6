"""Chats over HTTP: rows, answers and events; the tasks that reply are begun here and carried out by nobody."""

import asyncio
from datetime import timedelta
from uuid import UUID

import httpx
import pytest
from uuid6 import uuid7

from api.temporal import TemporalGateway
from storage import chats, projects
from storage.engine import Database
from tests.api.agent_stand import AgentStand, agent_stand, signals_of, until, workflow_of
from tests.api.stand import register
from tests.api.temporal_server import TemporalServer
from tests.api.test_idempotency import age_keys
from workflows.contracts.agent_tasks import TaskState

MISSING = str(uuid7())


@pytest.fixture
def temporal(temporal_server: TemporalServer) -> TemporalGateway:
    return TemporalGateway(temporal_server.address, "default")


@pytest.fixture
async def stand(client: httpx.AsyncClient, database: Database) -> AgentStand:
    return await agent_stand(client, database)


async def test_a_chat_has_a_project_and_a_title(stand: AgentStand) -> None:
    first = (await stand.call("POST", "/api/chat", {"project_id": stand.project_id, "title": " Colours "})).json()
    second = await stand.chat()
    assert set(first) == {"id", "project_id", "title", "created_at"}
    assert (first["project_id"], first["title"], UUID(first["id"]).version) == (stand.project_id, "Colours", 7)
    assert (await stand.call("GET", f"/api/chat/{first['id']}")).json() == first

    page = (await stand.call("GET", "/api/chat?limit=1")).json()
    rest = (await stand.call("GET", f"/api/chat?limit=1&cursor={page['next_cursor']}")).json()
    assert [chat["id"] for chat in page["items"] + rest["items"]] == [second, first["id"]]
    other = await agent_stand(stand.client, stand.database, stand.owner)
    assert (await stand.call("GET", f"/api/chat?project_id={other.project_id}")).json()["items"] == []
    mine = await stand.call("GET", f"/api/chat?project_id={stand.project_id}")
    assert [chat["id"] for chat in mine.json()["items"]] == [second, first["id"]]


@pytest.mark.parametrize("title", ["", "  ", "a\0b", "x" * 201])
async def test_a_title_says_something(stand: AgentStand, title: str) -> None:
    answer = await stand.call("POST", "/api/chat", {"project_id": stand.project_id, "title": title})
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")


async def test_a_message_begins_a_reply(stand: AgentStand, temporal: TemporalGateway) -> None:
    chat = await stand.chat()
    answer = await stand.call("POST", f"/api/chat/{chat}/messages", {"content": "What is this?"})
    body = answer.json()
    task = body["task"]
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/api/operations/{task['id']}"
    assert set(body["message"]) == {"id", "chat_id", "seq", "role", "content", "task_id", "created_at"}
    assert (body["message"]["seq"], body["message"]["role"], body["message"]["content"]) == (1, "user", "What is this?")
    assert (task["mode"], task["state"], task["chat_id"], task["model"]) == ("chat", "queued", chat, "gone")
    assert (task["tools"], task["steps"], task["approvals"]) == ([], [], [])
    assert task["usage"] == {"input_tokens": 0, "output_tokens": 0, "cost_usd": 0.0}
    assert (await stand.call("GET", f"/api/chat/{chat}/messages")).json()["items"] == [body["message"]]

    described = await workflow_of(await temporal.client(), task["id"])
    assert described.workflow_type == "AgentTask"
    [state, message] = await stand.log()
    assert (state[1], state[2]["state"], state[2]["chat_id"], state[2]["mode"]) == (
        "task.state",
        "queued",
        chat,
        "chat",
    )
    assert message[1] == "message.final"
    assert message[2] == body["message"] | {"step": 0}


async def test_the_same_message_is_sent_once(stand: AgentStand) -> None:
    chat = await stand.chat()
    body = {"content": "Hello", "client_message_id": "tab-1/1"}
    answers = await asyncio.gather(*(stand.call("POST", f"/api/chat/{chat}/messages", body) for _ in range(5)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.text for answer in answers}) == 1
    await stand.set_state(answers[0].json()["task"]["id"], TaskState.COMPLETED)
    again = (await stand.call("POST", f"/api/chat/{chat}/messages", body)).json()
    assert again["message"] == answers[0].json()["message"]
    assert (again["task"]["id"], again["task"]["state"]) == (answers[0].json()["task"]["id"], "completed")
    assert len((await stand.call("GET", f"/api/chat/{chat}/messages")).json()["items"]) == 1
    elsewhere = await stand.call("POST", f"/api/chat/{await stand.chat()}/messages", body)
    assert elsewhere.json()["message"]["id"] != again["message"]["id"]


async def test_an_attempt_that_died_has_sent_its_message(stand: AgentStand) -> None:
    async def retried(path: str, body: dict[str, object]) -> list[httpx.Response]:
        first = await stand.call("POST", path, body, idempotency_key=path)
        await age_keys(stand.database, timedelta(seconds=31), status=None, headers=None, body_encrypted=None)
        return [first, await stand.call("POST", path, body, idempotency_key=path)]

    made = await retried("/api/chat", {"project_id": stand.project_id})
    assert made[0].json() == made[1].json()
    chat = made[0].json()["id"]
    sent = await retried(f"/api/chat/{chat}/messages", {"content": "Hello"})
    assert [answer.status_code for answer in sent] == [202, 202]
    assert sent[0].json() == sent[1].json()
    await stand.set_state(sent[0].json()["task"]["id"], TaskState.FAILED)
    begun = await retried("/api/agent/tasks", {"project_id": stand.project_id, "prompt": "x"})
    assert begun[0].json() == begun[1].json()
    again = await retried(f"/api/agent/tasks/{sent[0].json()['task']['id']}/retry", {})
    assert again[0].json()["id"] == again[1].json()["id"]
    assert len((await stand.call("GET", f"/api/chat/{chat}/messages")).json()["items"]) == 1


async def test_one_reply_at_a_time_unless_it_is_said_otherwise(stand: AgentStand, temporal: TemporalGateway) -> None:
    path = f"/api/chat/{await stand.chat()}/messages"
    first = (await stand.call("POST", path, {"content": "one"})).json()["task"]["id"]
    busy = await stand.call("POST", path, {"content": "two"})
    assert (busy.status_code, busy.json()["code"]) == (409, "chat_busy")
    queued = await stand.call("POST", path, {"content": "two", "on_busy": "enqueue"})
    assert queued.status_code == 202
    await stand.set_state(first, TaskState.RUNNING)
    newest = (await stand.call("POST", path, {"content": "three", "on_busy": "interrupt"})).json()["task"]
    assert newest["state"] == "queued"
    for superseded in (first, queued.json()["task"]["id"]):
        rows = await stand.call("GET", f"/api/agent/tasks/{superseded}")
        assert rows.json()["state"] in {"running", "queued"}  # its worker ends it
        assert await signals_of(await temporal.client(), superseded) == ["cancel"]
    # Those that are being cancelled are waited for, but aren't in the way.
    await stand.call("POST", f"/api/agent/tasks/{newest['id']}/cancel")
    assert (await stand.call("POST", path, {"content": "four"})).status_code == 202
    assert [message["content"] for message in (await stand.call("GET", path)).json()["items"]] == [
        "one",
        "two",
        "three",
        "four",
    ]


async def test_of_several_messages_at_once_one_is_taken(stand: AgentStand) -> None:
    path = f"/api/chat/{await stand.chat()}/messages"
    answers = await asyncio.gather(*(stand.call("POST", path, {"content": str(n)}) for n in range(8)))
    assert sorted(answer.status_code for answer in answers) == [202] + [409] * 7
    assert len((await stand.call("GET", path)).json()["items"]) == 1


async def test_a_queue_has_an_end(stand: AgentStand) -> None:
    path = f"/api/chat/{await stand.chat()}/messages"
    answers = [await stand.call("POST", path, {"content": "x", "on_busy": "enqueue"}) for _ in range(21)]
    assert [answer.status_code for answer in answers] == [202] * 20 + [409]
    assert answers[-1].json()["code"] == "queue_full"
    interrupting = await stand.call("POST", path, {"content": "x", "on_busy": "interrupt"})
    assert (interrupting.status_code, interrupting.json()["code"]) == (409, "queue_full")


@pytest.mark.parametrize("content", ["", " \n", "a\0b", "x" * 100_001, None, 7])
async def test_a_message_says_something(stand: AgentStand, content: object) -> None:
    answer = await stand.call("POST", f"/api/chat/{await stand.chat()}/messages", {"content": content})
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")


async def test_messages_come_in_pages(stand: AgentStand) -> None:
    chat = await stand.chat()
    async with stand.database.transaction() as session:
        await projects.lock(session, stand.project_id)
        for number in range(5):
            await chats.add_message(session, UUID(chat), role=chats.ASSISTANT, content=str(number), task_id=None)
    first = (await stand.call("GET", f"/api/chat/{chat}/messages?limit=3")).json()
    rest = (await stand.call("GET", f"/api/chat/{chat}/messages?limit=3&cursor={first['next_cursor']}")).json()
    assert rest["next_cursor"] is None
    seen = [(message["seq"], message["content"]) for message in first["items"] + rest["items"]]
    assert seen == [(number + 1, str(number)) for number in range(5)]


async def test_a_deleted_chat_ends_what_runs_in_it(stand: AgentStand, temporal: TemporalGateway) -> None:
    chat = await stand.chat()
    task = (await stand.call("POST", f"/api/chat/{chat}/messages", {"content": "one"})).json()["task"]["id"]
    await stand.set_state(task, TaskState.RUNNING)
    assert (await stand.call("DELETE", f"/api/chat/{chat}")).status_code == 204
    for path in (f"/api/chat/{chat}", f"/api/chat/{chat}/messages", f"/api/agent/tasks/{task}"):
        assert (await stand.call("GET", path)).status_code == 404
    assert (await stand.call("DELETE", f"/api/chat/{chat}")).status_code == 404
    last = (await stand.log())[-1]
    assert (last[1], last[2]["state"], last[2]["reason"]) == ("task.state", "cancelled", "cancelled_by_user")
    assert await signals_of(await temporal.client(), task) == ["cancel"]


async def test_a_reply_can_be_waited_for(stand: AgentStand) -> None:
    path = f"/api/chat/{await stand.chat()}/messages"
    late = await stand.call("POST", path, {"content": "one"}, prefer="wait=1")
    assert (late.status_code, late.json()["task"]["state"]) == (202, "queued")
    task = late.json()["task"]["id"]
    waiting = asyncio.create_task(
        stand.call("POST", path, {"content": "two", "on_busy": "enqueue", "client_message_id": "2"}, prefer="wait=60")
    )

    async def both_are_there() -> bool:
        return len((await stand.call("GET", "/api/agent/tasks")).json()["items"]) == 2

    await until(both_are_there)
    tasks = (await stand.call("GET", "/api/agent/tasks")).json()["items"]
    await stand.set_state(task, TaskState.COMPLETED)
    await stand.set_state(tasks[0]["id"], TaskState.COMPLETED)
    answer = await waiting
    assert (answer.status_code, answer.json()["task"]["state"]) == (201, "completed")


class TestWithoutTemporal:
    @pytest.fixture
    def temporal(self) -> TemporalGateway:
        return TemporalGateway("127.0.0.1:1", "default")

    async def test_nothing_is_begun_that_could_not_be_started(self, stand: AgentStand) -> None:
        chat = await stand.chat()
        answer = await stand.call("POST", f"/api/chat/{chat}/messages", {"content": "one"})
        assert (answer.status_code, answer.json()["retryable"]) == (503, True)
        assert int(answer.headers["retry-after"]) > 0
        assert (await stand.call("GET", f"/api/chat/{chat}/messages")).json()["items"] == []
        assert await stand.log() == []
        assert (await stand.call("DELETE", f"/api/chat/{chat}")).status_code == 204


ROUTES = [
    ("GET", "/api/chat?project_id={project}", None),
    ("POST", "/api/chat", {"project_id": "{project}"}),
    ("GET", "/api/chat/{chat}", None),
    ("DELETE", "/api/chat/{chat}", None),
    ("GET", "/api/chat/{chat}/messages", None),
    ("POST", "/api/chat/{chat}/messages", {"content": "x"}),
]


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
async def test_a_chat_is_its_owners_alone(
    stand: AgentStand, method: str, path: str, body: dict[str, object] | None
) -> None:
    chat = await stand.chat()
    there = path.format(project=stand.project_id, chat=chat)
    missing = path.format(project=2**40, chat=MISSING)

    def filled(project: int) -> dict[str, object] | None:
        return body | {"project_id": project} if body and "project_id" in body else body

    other = await register(stand.client)
    theirs = await stand.client.request(method, there, json=filled(stand.project_id), headers=other.headers)
    none = await stand.client.request(method, missing, json=filled(2**40), headers=stand.owner.headers)
    assert (theirs.status_code, none.status_code) == (404, 404)
    assert theirs.content == none.content
    nobody = await stand.client.request(method, there, json=filled(stand.project_id))
    assert nobody.status_code == 401
    made = await stand.call("POST", "/api/users/me/api-keys", {"name": "k", "scopes": ["read"]})
    key = {"Authorization": f"Bearer {made.json()['key']}"}
    reading = await stand.client.request(method, there, json=filled(stand.project_id), headers=key)
    assert reading.status_code == (200 if method == "GET" else 403)
    assert (await stand.call("GET", f"/api/chat/{chat}")).status_code == 200
