"""The AI SDK's routes over HTTP, with tasks whose life the tests write. The SDK itself: tests/e2e/test_ai_sdk.py."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from httpx_sse import EventSource
from uuid6 import uuid7

from api import sse
from api.temporal import TemporalGateway
from storage import agent_tasks, event_log
from storage.engine import Database
from tests.api.agent_stand import AgentStand, agent_stand, until
from tests.api.passes import ENDS, End, passes
from tests.api.stand import Account
from tests.api.temporal_server import TemporalServer
from tests.clients import npm
from workflows.contracts.agent_tasks import TaskState
from workflows.contracts.events import EventType, NewEvent

Part = dict[str, Any]
FOLDER = Path(__file__).parents[1] / "clients" / "ai"


@pytest.fixture
def temporal(temporal_server: TemporalServer) -> TemporalGateway:
    return TemporalGateway(temporal_server.address, "default")


@pytest.fixture
async def stand(client: httpx.AsyncClient, database: Database) -> AgentStand:
    return await agent_stand(client, database)


def said(text: str = "Hello", name: str = "m1", **fields: Any) -> Part:
    """A request as the SDK sends it."""
    message = {"id": name, "role": "user", "parts": [{"type": "text", "text": text}]}
    return {"id": "x", "messages": [message], "trigger": "submit-message", **fields}


@asynccontextmanager
async def streaming(
    stand: AgentStand, method: str, path: str, body: Part | None = None, **more: Any
) -> AsyncIterator[AsyncIterator[Part]]:
    """The parts of an answer as they come; the last is None, for `[DONE]`."""
    request = {"headers": stand.owner.headers, "json": body} | more
    async with asyncio.timeout(30), stand.client.stream(method, path, **request) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
        assert answer.headers["cache-control"] == "no-cache, no-transform"

        async def parts() -> AsyncIterator[Any]:
            async for event in EventSource(answer).aiter_sse():
                yield None if event.data == "[DONE]" else json.loads(event.data)

        yield parts()


async def whole(stand: AgentStand, method: str, path: str, body: Part | None = None) -> list[Any]:
    async with streaming(stand, method, path, body) as parts:
        return [part async for part in parts]


async def begun(stand: AgentStand, path: str, body: Part) -> str:
    """Say something and leave; the task's id."""
    async with streaming(stand, "POST", path, body) as parts:
        return str((await anext(parts))["messageId"])


async def test_a_reply_is_a_message_with_the_tasks_id(stand: AgentStand) -> None:
    chat = await stand.chat()
    path = f"/api/chat/{chat}/ui"
    async with streaming(stand, "POST", path, said("Hello", budget_usd=1, theirs={"own": 1})) as parts:
        start, state = await anext(parts), await anext(parts)
        task = start["messageId"]
        assert start == {"type": "start", "messageId": task}
        assert (state["type"], state["id"], state["data"]["state"]) == ("data-task", task, "queued")
        await stand.tell(task, "Hi", " there")
        await stand.set_state(task, TaskState.COMPLETED)
        rest = [part async for part in parts]
    text = ["start-step", "text-start", "text-delta", "text-delta"]
    kinds = [*text, "data-task", "text-end", "finish-step", "finish"]
    assert [part["type"] for part in rest[:-1]] == kinds
    assert rest[-1] is None
    shown = await stand.task(task)
    assert (shown["mode"], shown["prompt"], shown["budget_usd"]) == ("chat", "Hello", 1.0)
    [message] = (await stand.call("GET", f"/api/chat/{chat}/messages")).json()["items"]
    assert (message["content"], message["task_id"]) == ("Hello", task)


async def test_a_resend_gives_the_same_task_and_an_edited_message_a_new_one(stand: AgentStand) -> None:
    path = f"/api/chat/{await stand.chat()}/ui"
    first = await begun(stand, path, said("Hello"))
    assert await begun(stand, path, said("Hello")) == first
    busy = await stand.call("POST", path, said("Goodbye"))
    assert (busy.status_code, busy.json()["code"]) == (409, "chat_busy")
    await stand.set_state(first, TaskState.COMPLETED)
    second = await begun(stand, path, said("Goodbye", messageId="m1"))
    assert second != first
    assert await begun(stand, path, said("Goodbye", messageId="m1")) == second
    assert await begun(stand, path, said("Hello")) == first


async def test_regenerate_tries_again_what_is_meant(stand: AgentStand) -> None:
    path = f"/api/chat/{await stand.chat()}/ui"
    again = said(trigger="regenerate-message")
    nothing = await stand.call("POST", path, again)
    assert (nothing.status_code, nothing.json()["code"]) == (409, "nothing_to_regenerate")
    first = await begun(stand, path, said("One", "m1"))
    await stand.set_state(first, TaskState.COMPLETED)
    second = await begun(stand, path, said("Two", "m2"))
    await stand.set_state(second, TaskState.FAILED)
    messages = (await stand.call("GET", f"{path.removesuffix('/ui')}/messages")).json()["items"]
    newest = second
    for name, meant in ((None, None), (first, first), ("m1", first), (messages[0]["id"], first), ("unknown", None)):
        task = await begun(stand, path, again | {"messageId": name})
        assert (await stand.task(task))["retry_of"] == (meant or newest)
        await stand.set_state(task, TaskState.COMPLETED)
        newest = task
    other = await agent_stand(stand.client, stand.database)
    strange = await begun(other, f"/api/chat/{await other.chat()}/ui", said("Three"))
    task = await begun(stand, path, again | {"messageId": strange})
    assert (await stand.task(task))["retry_of"] == newest


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([], "bad_message"),
        ([{"role": "assistant", "parts": []}], "bad_message"),
        ([{"id": "m", "role": "user", "parts": []}], "bad_message"),
        ([{"id": "m", "role": "user", "parts": [{"type": "text", "text": "a\0b"}]}], "bad_message"),
        ([{"id": "m", "role": "user", "parts": ["a", {"type": "text", "text": None}]}], "bad_message"),
        ([{"id": "m" * 201, "role": "user", "parts": [{"type": "text", "text": "a"}]}], "bad_message"),
        ([{"id": "m", "role": "user", "parts": [{"type": "file", "url": "data:,x"}]}], "files_not_supported"),
        ([{"role": "assistant", "parts": [{"state": "approval-responded", "approval": {"id": 1}}]}], "bad_message"),
        ([{"role": "assistant", "parts": [{"state": "approval-responded"}]}], "bad_message"),
    ],
)
async def test_a_message_that_says_nothing_is_refused(stand: AgentStand, messages: list[Any], code: str) -> None:
    answer = await stand.call("POST", f"/api/chat/{await stand.chat()}/ui", {"messages": messages})
    assert (answer.status_code, answer.json()["code"]) == (422, code)


async def test_a_long_chat_may_be_sent_along(stand: AgentStand) -> None:
    path = f"/api/chat/{await stand.chat()}/ui"
    old = {"id": "o", "role": "assistant", "parts": [{"type": "text", "text": "x" * 3_000_000}]}
    body = said("Short")
    assert await begun(stand, path, body | {"messages": [old, *body["messages"]]})


async def test_answers_are_written_down_once_and_the_stream_goes_on_after_them(stand: AgentStand) -> None:
    chat = await stand.chat()
    task = await begun(stand, f"/api/chat/{chat}/ui", said(mode="agent", approval_mode="ask", tools=["run_command"]))
    assert (await stand.task(task))["tools"] == ["run_command"]
    [approval] = await stand.ask(task, "run_command")
    reply = {"id": approval, "approved": False, "reason": "Not now."}
    parts = [{"type": "dynamic-tool", "state": "approval-responded", "approval": reply}]
    body = said() | {"messages": [{"id": task, "role": "assistant", "parts": parts}]}
    for _ in range(2):
        assert await begun(stand, f"/api/chat/{chat}/ui", body) == task
    [shown] = (await stand.task(task))["approvals"]
    assert (shown["state"], shown["note"]) == ("denied", "Not now.")
    elsewhere = await stand.call("POST", f"/api/chat/{await stand.chat()}/ui", body)
    assert elsewhere.status_code == 404
    await stand.set_state(task, TaskState.RUNNING)
    await stand.set_state(task, TaskState.CANCELLED, "cancelled_by_user")
    after = await whole(stand, "POST", f"/api/chat/{chat}/ui", body)
    states = [part["data"]["state"] for part in after if part and part["type"] == "data-task"]
    assert states == ["running", "cancelled"], "what came before the answer isn't told again"
    assert after[-2:] == [{"type": "abort", "reason": "cancelled_by_user"}, None]


async def test_a_stream_is_resumed_while_something_runs(stand: AgentStand) -> None:
    chat = await stand.chat()
    path = f"/api/chat/{chat}/ui"
    for resume in (f"{path}/stream", f"{path}/{chat}/stream"):
        assert (await stand.call("GET", resume)).status_code == 204
    assert (await stand.call("POST", f"{path}/stop")).status_code == 204
    task = await begun(stand, path, said())
    await stand.tell(task, "One ", "two ")
    for resume in (f"{path}/stream", f"{path}/{chat}/stream"):
        async with streaming(stand, "GET", resume) as parts:
            seen = [await anext(parts) for _ in range(5)]
            assert [part["type"] for part in seen[2:]] == ["start-step", "text-start", "text-delta"]
            assert (seen[0]["messageId"], seen[4]["delta"]) == (task, "One two ")
    assert (await stand.call("GET", f"{path}/{uuid7()}/stream")).status_code == 404
    stopped = await stand.call("POST", f"{path}/stop")
    assert (stopped.status_code, stopped.json()["id"]) == (202, task)
    async with stand.database.reading() as session:
        row = await agent_tasks.get(session, UUID(task))
    assert row is not None
    assert row.cancel_reason == "cancelled_by_user"


async def test_a_failed_task_ends_with_an_error(stand: AgentStand) -> None:
    path = f"/api/chat/{await stand.chat()}/ui"
    task = await begun(stand, path, said())
    await stand.set_state(task, TaskState.FAILED, "model_refused")
    parts = await whole(stand, "POST", path, said())
    assert parts[-2:] == [{"type": "error", "errorText": "model_refused"}, None]


async def test_a_chat_that_is_deleted_ends_its_streams(stand: AgentStand) -> None:
    chat = await stand.chat()
    async with streaming(stand, "POST", f"/api/chat/{chat}/ui", said()) as parts:
        await anext(parts)
        assert (await stand.call("DELETE", f"/api/chat/{chat}")).status_code == 204
        assert [part async for part in parts][-2:] == [{"type": "abort", "reason": "cancelled_by_user"}, None]


async def test_nobody_speaks_in_anothers_chat(stand: AgentStand) -> None:
    chat = await stand.chat()
    await begun(stand, f"/api/chat/{chat}/ui", said())
    stranger = await agent_stand(stand.client, stand.database)
    asked: list[Callable[[AgentStand, str], Awaitable[httpx.Response]]] = [
        lambda who, name: who.call("POST", f"/api/chat/{name}/ui", said()),
        lambda who, name: who.call("GET", f"/api/chat/{name}/ui/stream"),
        lambda who, name: who.call("GET", f"/api/chat/{name}/ui/{name}/stream"),
        lambda who, name: who.call("POST", f"/api/chat/{name}/ui/stop"),
    ]
    for ask in asked:
        theirs, nobodys = await ask(stranger, chat), await ask(stranger, str(uuid7()))
        assert theirs.status_code == nobodys.status_code == 404
        assert theirs.json() == nobodys.json()
    nobody = AgentStand(stand.client, stand.database, Account(0, "", "", "x", ""), 0)
    assert [(await ask(nobody, chat)).status_code for ask in asked] == [401] * 4


async def test_a_key_that_may_only_read_only_reads(stand: AgentStand) -> None:
    path = f"/api/chat/{await stand.chat()}/ui"
    made = await stand.call("POST", "/api/users/me/api-keys", {"name": "k", "scopes": ["read"]})
    headers = {"Authorization": f"Bearer {made.json()['key']}"}
    for action in ("", "/stop"):
        refused = await stand.client.post(f"{path}{action}", json=said(), headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (403, "missing_scope")
    await begun(stand, path, said())
    async with streaming(stand, "GET", f"{path}/stream", headers=headers) as parts:
        assert (await anext(parts))["type"] == "start"


@pytest.mark.parametrize(("end", "by"), [(end, by) for end, names in ENDS for by in sorted(names)])
async def test_a_stream_ends_with_the_callers_access_and_says_that_it_isnt_whole(
    stand: AgentStand, monkeypatch: pytest.MonkeyPatch, end: End, by: str
) -> None:
    monkeypatch.setattr(sse, "ACCESS_CHECK_S", 0.1)
    path = f"/api/chat/{await stand.chat()}/ui"
    await begun(stand, path, said())
    shown = (await passes(stand.client, stand.owner))[by]
    async with streaming(stand, "GET", f"{path}/stream", headers=shown.headers, params=shown.params) as parts:
        await anext(parts)
        await end(stand.client, stand.owner, stand.database)
        assert [part["type"] async for part in parts] == ["data-task", "error"]


async def test_a_browser_elsewhere_may_see_the_protocols_version(stand: AgentStand) -> None:
    answer = await stand.call("GET", "/healthz", Origin="https://console.example.com")
    assert "x-vercel-ai-ui-message-stream" in answer.headers["access-control-expose-headers"].lower()


async def test_the_sdk_takes_back_what_a_broken_model_call_has_said(stand: AgentStand, address: str) -> None:
    chat = await stand.chat()
    told = {"story": "retold", "base": address, "token": stand.owner.access_token, "id": chat, "text": "Hello"}
    story = asyncio.create_task(npm.run(FOLDER, "chat.mjs", told))

    async def has_messages(count: int) -> bool:
        return len((await stand.call("GET", f"/api/chat/{chat}/messages")).json()["items"]) == count

    await until(lambda: has_messages(1))
    [task] = (await stand.call("GET", "/api/agent/tasks")).json()["items"]
    await stand.tell(task["id"], "Once upon a time")
    await until(lambda: has_messages(2))  # by which the client says that it has read it
    reset = NewEvent(project_id=stand.project_id, type=EventType.STEP_RESET, task_id=task["id"], data={"step": 1})
    async with stand.database.transaction() as session:
        event_log.append(session, [reset])
    await stand.tell(task["id"], "Good", " morning")
    await stand.set_state(task["id"], TaskState.COMPLETED)
    shown = await story
    assert shown["before"] == "Once upon a time"
    assert (shown["status"], shown["text"]) == ("ready", "Good morning")
    assert [part["type"] for part in shown["parts"]] == ["data-task", "step-start", "text"]
