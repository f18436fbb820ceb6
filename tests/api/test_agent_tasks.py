"""The agent's tasks over HTTP. No worker runs: what one would write, the tests write themselves."""

import asyncio
import json
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest
from httpx_sse import EventSource
from sqlalchemy import update
from uuid6 import uuid7

from activities.language_models.openai_compatible import ModelServer, OpenAICompatibleModel
from activities.ports import LanguageModel, ModelInfo
from api import sse
from api.temporal import TemporalGateway
from storage.engine import Database, connect
from storage.event_listener import CANCELS_CHANNEL
from storage.tables import AgentTaskRow, TaskStep, ToolCall, User
from storage.task_requests import MAX_OPEN, title_of
from storage.task_views import SHOWN_CHARACTERS, SHOWN_STEPS
from tests.api.agent_stand import AgentStand, Json, agent_stand, signals_of, until, workflow_of
from tests.api.passes import delete_key, passes
from tests.api.stand import register
from tests.api.temporal_server import TemporalServer
from workflows.contracts.agent_tasks import ApprovalKind, CallState, TaskState

TASKS = "/api/agent/tasks"
MISSING = str(uuid7())


class TwoModels(OpenAICompatibleModel):
    """Offers `small` and `large`."""

    async def models(self) -> list[ModelInfo]:
        return [ModelInfo("large"), ModelInfo("small")]


@pytest.fixture
def temporal(temporal_server: TemporalServer) -> TemporalGateway:
    return TemporalGateway(temporal_server.address, "default")


@pytest.fixture
def models() -> LanguageModel:
    return TwoModels(ModelServer("http://127.0.0.1:1/v1", default_model="small"))


@pytest.fixture
async def stand(client: httpx.AsyncClient, database: Database) -> AgentStand:
    return await agent_stand(client, database)


async def decide(stand: AgentStand, task_id: str, approval: str, decision: str, **more: Any) -> httpx.Response:
    return await stand.call("POST", f"{TASKS}/{task_id}/approvals/{approval}", {"decision": decision, **more})


async def test_a_task_makes_its_chat_and_begins(stand: AgentStand, temporal: TemporalGateway) -> None:
    task = await stand.begin("\n  Make it blue.\nAnd test it.", tools=["read_file", "read_file"], budget_usd=0.1)
    assert (task["state"], task["mode"], task["model"], task["approval_mode"]) == ("queued", "agent", "small", "auto")
    assert (task["max_steps"], task["budget_usd"], task["tools"]) == (100, 0.1, ["read_file"])
    assert (task["steps"], task["approvals"], task["retry_of"], task["ended_at"]) == ([], [], None, None)
    chat = (await stand.call("GET", f"/api/chat/{task['chat_id']}")).json()
    assert chat["title"] == "Make it blue."
    [message] = (await stand.call("GET", f"/api/chat/{task['chat_id']}/messages")).json()["items"]
    assert (message["content"], message["task_id"]) == (task["prompt"], task["id"])
    described = await workflow_of(await temporal.client(), task["id"])
    assert (described.workflow_type, described.id) == ("AgentTask", f"agent-task-{task['id']}")
    assert await stand.task(task["id"]) == task


def test_a_title_is_a_line() -> None:
    assert title_of("x" * 81) == "x" * 79 + "…"
    assert title_of("x" * 80) == "x" * 80


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"model": "huge"}, "unknown_model"),
        ({"tools": ["read_file", "format_disk"]}, "unknown_tool"),
        ({"prompt": " "}, "validation_failed"),
        ({"prompt": "a\0"}, "validation_failed"),
        ({"max_steps": 201}, "validation_failed"),
        ({"max_steps": 0}, "validation_failed"),
        ({"budget_usd": 0}, "validation_failed"),
        ({"budget_usd": "NaN"}, "validation_failed"),
        ({"approval_mode": "never"}, "validation_failed"),
        ({"on_busy": "wait"}, "validation_failed"),
        ({"user_id": 1}, "validation_failed"),
    ],
)
async def test_what_makes_no_sense_is_refused(stand: AgentStand, fields: Json, code: str) -> None:
    body = {"project_id": stand.project_id, "prompt": "x", **fields}
    answer = await stand.call("POST", TASKS, body)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert await stand.log() == []


async def test_a_user_has_so_many_open_tasks(stand: AgentStand) -> None:
    task = await stand.begin()
    await stand.execute(
        """INSERT INTO agent_tasks (id, user_id, project_id, chat_id, mode, prompt, prompt_seq, model, approval_mode,
               max_steps) SELECT gen_random_uuid(), user_id, project_id, chat_id, mode, prompt, 1, model, 'auto', 1
           FROM agent_tasks, generate_series(2, :most)""",
        most=MAX_OPEN,
    )
    answer = await stand.call("POST", TASKS, {"project_id": stand.project_id, "prompt": "x"})
    assert (answer.status_code, answer.json()["code"]) == (409, "too_many_tasks")
    await stand.set_state(task["id"], TaskState.COMPLETED)
    await stand.begin()


async def add_steps(stand: AgentStand, task_id: str, count: int, result: str) -> None:
    async with stand.database.transaction() as session:
        usage = {"input_tokens": 10, "output_tokens": 2, "cost_usd": Decimal("0.001")}
        for n in range(1, count + 1):
            session.add(TaskStep(task_id=UUID(task_id), n=n, text=f"step {n}", finish_reason="tool_calls", **usage))
        await session.flush()
        for position, arguments in enumerate(('{"path": "a"}', '{"path": ', '["a"]', '{"path": "\\ud800"}')):
            call = ToolCall(
                id=f"{task_id}-{position}",
                task_id=UUID(task_id),
                step=count,
                position=position,
                wave=0,
                name="read_file",
                arguments=arguments,
                state=CallState.COMPLETED,
                result=result,
                exit_code=0,
            )
            session.add(call)
        total = {"input_tokens": 10 * count, "cost_usd": Decimal("0.0010000001")}
        await session.execute(update(AgentTaskRow).where(AgentTaskRow.id == UUID(task_id)).values(total))


async def test_steps_are_shown_with_their_calls(stand: AgentStand) -> None:
    task = await stand.begin()
    await add_steps(stand, task["id"], 2, "r" * 5000)
    shown = await stand.task(task["id"])
    assert shown["usage"] == {"input_tokens": 20, "output_tokens": 0, "cost_usd": 0.0010000001}
    [first, second] = shown["steps"]
    assert (first["n"], first["text"], first["tool_calls"]) == (1, "step 1", [])
    assert first["usage"] == {"input_tokens": 10, "output_tokens": 2, "cost_usd": 0.001}
    calls = second["tool_calls"]
    assert [call["arguments"] for call in calls] == [{"path": "a"}, '{"path": ', '["a"]', '{"path": "\\ud800"}']
    assert set(calls[0]) == {
        "id",
        "name",
        "arguments",
        "state",
        "result",
        "exit_code",
        "started_at",
        "ended_at",
    }
    assert (calls[0]["state"], calls[0]["exit_code"], len(calls[0]["result"])) == ("completed", 0, 5000)


async def test_a_list_shows_the_newest_and_not_too_much_of_it(stand: AgentStand) -> None:
    first, second = await stand.begin(), await stand.begin()
    await add_steps(stand, first["id"], SHOWN_STEPS + 3, "r" * 5000)
    await stand.set_state(second["id"], TaskState.RUNNING)
    listed = (await stand.call("GET", TASKS)).json()["items"]
    assert [task["id"] for task in listed] == [second["id"], first["id"]]
    assert [step["n"] for step in listed[1]["steps"]] == list(range(4, SHOWN_STEPS + 4))
    assert len(listed[1]["steps"][-1]["tool_calls"][0]["result"]) == SHOWN_CHARACTERS
    assert len((await stand.task(first["id"]))["steps"]) == SHOWN_STEPS + 3
    running = await stand.call("GET", f"{TASKS}?state=running&project_id={stand.project_id}")
    assert [task["id"] for task in running.json()["items"]] == [second["id"]]
    page = (await stand.call("GET", f"{TASKS}?limit=1")).json()
    rest = (await stand.call("GET", f"{TASKS}?limit=1&cursor={page['next_cursor']}")).json()
    assert [task["id"] for task in page["items"] + rest["items"]] == [second["id"], first["id"]]
    assert (await stand.call("GET", f"{TASKS}?state=lost")).status_code == 422


async def test_a_cancelled_task_is_told_at_once(stand: AgentStand, temporal: TemporalGateway) -> None:
    task = await stand.begin()
    heard: asyncio.Queue[str] = asyncio.Queue()
    listener = await connect(stand.database.dsn)

    def hear(_connection: asyncpg.Connection, _pid: int, _channel: str, payload: str) -> None:
        heard.put_nowait(payload)

    await listener.add_listener(CANCELS_CHANNEL, hear)
    answers = [await stand.call("POST", f"{TASKS}/{task['id']}/cancel") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    async with asyncio.timeout(10):
        assert await heard.get() == task["id"]
    await listener.close()
    assert set(await signals_of(await temporal.client(), task["id"])) == {"cancel"}
    await stand.set_state(task["id"], TaskState.CANCELLED, "cancelled_by_user")
    late = await stand.call("POST", f"{TASKS}/{task['id']}/cancel", prefer="wait=5")
    assert (late.status_code, late.json()["state"]) == (200, "cancelled")
    assert late.json()["state_reason"] == "cancelled_by_user"


async def test_a_decision_is_made_once(stand: AgentStand, temporal: TemporalGateway) -> None:
    task = await stand.begin(approval_mode="ask")
    [approval] = await stand.ask(task["id"], "run_command")
    [asked] = (await stand.task(task["id"]))["approvals"]
    assert (asked["id"], asked["state"], asked["kind"], asked["step"]) == (approval, "pending", "tool", 1)
    answers = await asyncio.gather(
        *(decide(stand, task["id"], approval, decision, note="not now") for decision in ("deny", "allow"))
    )
    [first, late] = sorted(answers, key=lambda answer: answer.status_code)
    assert (first.status_code, late.status_code, late.json()["code"]) == (200, 409, "already_resolved")
    assert first.json()["note"] == "not now"
    assert (late.json()["decision"], late.json()["state"]) == (first.json()["decision"], first.json()["state"])
    assert late.json()["resolved_at"] == first.json()["resolved_at"]
    assert "look" in await signals_of(await temporal.client(), task["id"])
    resolved = [data for _, kind, data in await stand.log() if kind == "approval.resolved"]
    assert [data["decision"] for data in resolved] == [first.json()["decision"]]


async def test_a_denied_call_tells_the_model_why(stand: AgentStand) -> None:
    task = await stand.begin(approval_mode="ask")
    [approval] = await stand.ask(task["id"], "run_command")
    assert (await decide(stand, task["id"], approval, "deny", note="Use npm.")).json()["state"] == "denied"
    [call] = (await stand.task(task["id"]))["steps"][0]["tool_calls"]
    assert (call["state"], "Use npm." in call["result"], call["ended_at"] is None) == ("denied", True, False)


async def test_always_is_for_that_tool_in_this_task(stand: AgentStand) -> None:
    task = await stand.begin(approval_mode="ask")
    approvals = await stand.ask(task["id"], "run_command", "write_file", "run_command")
    assert (await decide(stand, task["id"], approvals[0], "allow_always")).status_code == 200
    shown = await stand.task(task["id"])
    assert {approval["id"]: approval["state"] for approval in shown["approvals"]} == {
        approvals[0]: "allowed",
        approvals[1]: "pending",
        approvals[2]: "allowed",
    }
    assert [call["state"] for call in shown["steps"][0]["tool_calls"]] == ["pending", "awaiting_approval", "pending"]
    again = await decide(stand, task["id"], approvals[2], "deny")
    assert (again.status_code, again.json()["decision"]) == (409, "allow_always")
    async with stand.database.reading() as session:
        row = await session.get(AgentTaskRow, UUID(task["id"]))
        assert row is not None
        assert row.allowed_tools == ["run_command"]


async def test_a_plan_is_allowed_as_a_whole(stand: AgentStand) -> None:
    task = await stand.begin(approval_mode="plan")
    [approval] = await stand.ask(task["id"], kind=ApprovalKind.PLAN)
    assert (await decide(stand, task["id"], approval, "allow")).json()["call_id"] is None
    async with stand.database.reading() as session:
        row = await session.get(AgentTaskRow, UUID(task["id"]))
        assert row is not None
        assert row.plan_allowed


async def test_a_decision_comes_too_late(stand: AgentStand) -> None:
    task = await stand.begin(approval_mode="ask")
    [expired] = await stand.ask(task["id"], "run_command", left_s=-1)
    answer = await decide(stand, task["id"], expired, "allow")
    assert (answer.status_code, answer.json()["code"], answer.json()["decision"]) == (409, "already_resolved", None)
    assert answer.json()["state"] == "expired"
    assert (await decide(stand, task["id"], MISSING, "allow")).status_code == 404

    other = await stand.begin(approval_mode="ask")
    [pending] = await stand.ask(other["id"], "run_command")
    assert (await decide(stand, task["id"], pending, "allow")).status_code == 404  # another task's
    await stand.set_state(other["id"], TaskState.COMPLETED)
    answer = await decide(stand, other["id"], pending, "allow")
    assert (answer.status_code, answer.json()["code"]) == (409, "task_ended")


async def test_a_running_task_is_steered(stand: AgentStand, temporal: TemporalGateway) -> None:
    task = await stand.begin()
    path = f"{TASKS}/{task['id']}/messages"
    body = {"content": "Greener.", "client_message_id": "7"}
    answers = [await stand.call("POST", path, body) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json() == answers[1].json()
    assert (answers[0].json()["role"], answers[0].json()["task_id"]) == ("user", task["id"])
    messages = (await stand.call("GET", f"/api/chat/{task['chat_id']}/messages")).json()["items"]
    assert [message["content"] for message in messages] == ["Make it blue.", "Greener."]
    assert (await stand.log())[-1][2]["step"] is None
    assert "look" in await signals_of(await temporal.client(), task["id"])
    await stand.set_state(task["id"], TaskState.COMPLETED)
    late = await stand.call("POST", path, {"content": "Bluer."})
    assert (late.status_code, late.json()["code"]) == (409, "task_ended")
    assert (await stand.call("POST", path, body)).json() == answers[0].json()


async def test_bounds_are_raised_only(stand: AgentStand, temporal: TemporalGateway) -> None:
    task = await stand.begin(budget_usd=0.5, max_steps=10)
    path = f"{TASKS}/{task['id']}"
    raised = await stand.call("PATCH", path, {"budget_usd": 0.75, "max_steps": 10})
    assert (raised.status_code, raised.json()["budget_usd"], raised.json()["max_steps"]) == (200, 0.75, 10)
    for body in ({"budget_usd": 0.7}, {"max_steps": 9}):
        answer = await stand.call("PATCH", path, body)
        assert (answer.status_code, answer.json()["code"]) == (422, "not_raised")
    assert "0.75" in (await stand.call("PATCH", path, {"budget_usd": 0.7})).json()["detail"]
    assert "look" in await signals_of(await temporal.client(), task["id"])
    unbounded = await stand.begin()
    assert (await stand.call("PATCH", f"{TASKS}/{unbounded['id']}", {"budget_usd": 1})).status_code == 422
    await stand.set_state(task["id"], TaskState.FAILED)
    answer = await stand.call("PATCH", path, {"max_steps": 20})
    assert (answer.status_code, answer.json()["code"]) == (409, "task_ended")


async def test_an_ended_task_is_tried_again(stand: AgentStand, temporal: TemporalGateway) -> None:
    task = await stand.begin(approval_mode="ask", max_steps=7, model="large", tools=["read_file"], budget_usd=2)
    path = f"{TASKS}/{task['id']}/retry"
    early = await stand.call("POST", path)
    assert (early.status_code, early.json()["code"]) == (409, "task_running")
    await stand.set_state(task["id"], TaskState.FAILED, "model_unavailable")
    answer = await stand.call("POST", path)
    again = answer.json()
    assert (answer.status_code, again["retry_of"], again["state"]) == (202, task["id"], "queued")
    assert answer.headers["location"] == f"/api/operations/{again['id']}"
    for field in ("prompt", "model", "tools", "approval_mode", "max_steps", "budget_usd", "chat_id", "mode"):
        assert again[field] == task[field], field
    assert len((await stand.call("GET", f"/api/chat/{task['chat_id']}/messages")).json()["items"]) == 1
    assert (await workflow_of(await temporal.client(), again["id"])).workflow_type == "AgentTask"
    busy = await stand.call("POST", path)
    assert (busy.status_code, busy.json()["code"]) == (409, "chat_busy")


async def test_a_task_is_an_operation_too(stand: AgentStand) -> None:
    task = await stand.begin()
    path = f"/api/operations/{task['id']}"
    running = (await stand.call("GET", path)).json()
    assert (running["kind"], running["state"], running["stage"]) == ("agent_task", "running", "queued")
    async with (
        asyncio.timeout(20),
        stand.client.stream("GET", f"{path}/events", headers=stand.owner.headers) as answer,
    ):
        events = EventSource(answer).aiter_sse()
        assert json.loads((await anext(events)).data)["stage"] == "queued"
        await stand.set_state(task["id"], TaskState.RUNNING)
        assert json.loads((await anext(events)).data)["stage"] == "running"
        await stand.set_state(task["id"], TaskState.FAILED, "model_unavailable")
        last = json.loads((await anext(events)).data)
        assert [event async for event in events] == []
    assert (last["state"], last["error"]["code"], last["error"]["retryable"]) == ("failed", "model_unavailable", True)
    other = await register(stand.client)
    assert (await stand.client.get(path, headers=other.headers)).status_code == 404


async def test_a_task_can_be_waited_for(stand: AgentStand) -> None:
    body = {"project_id": stand.project_id, "prompt": "x"}
    for state, status in ((TaskState.COMPLETED, 201), (TaskState.AWAITING_APPROVAL, 202)):
        before = len((await stand.call("GET", TASKS)).json()["items"])
        waiting = asyncio.create_task(stand.call("POST", TASKS, body, prefer="wait=60"))

        async def begun(before: int = before) -> bool:
            return len((await stand.call("GET", TASKS)).json()["items"]) > before

        await until(begun)
        newest = (await stand.call("GET", TASKS)).json()["items"][0]
        await stand.set_state(newest["id"], TaskState.RUNNING)
        assert not waiting.done()
        await stand.set_state(newest["id"], state)
        answer = await waiting
        assert (answer.status_code, answer.json()["state"]) == (status, state)


async def streamed(stand: AgentStand, task_id: str, **request: Any) -> tuple[int, list[Json]]:
    headers = stand.owner.headers | request.pop("headers", {})
    path = f"{TASKS}/{task_id}/events"
    async with asyncio.timeout(20), stand.client.stream("GET", path, headers=headers, **request) as answer:
        if answer.status_code != 200:
            return answer.status_code, []
        return 200, [json.loads(event.data) async for event in EventSource(answer).aiter_sse()]


async def test_a_tasks_stream_ends_with_it(stand: AgentStand) -> None:
    task, other = await stand.begin(), await stand.begin()
    await stand.set_state(task["id"], TaskState.RUNNING)
    streaming = asyncio.create_task(streamed(stand, task["id"]))
    await stand.tell(other["id"], "not mine")
    await stand.tell(task["id"], "Hel", "lo")
    await stand.tell(None, "nobody's")
    await stand.set_state(task["id"], TaskState.COMPLETED)
    await stand.tell(task["id"], "too late")
    status, events = await streaming
    assert status == 200
    assert [event["type"] for event in events] == [
        "task.state",
        "message.final",
        "task.state",
        "text.delta",
        "text.delta",
        "task.state",
    ]
    assert {event["task_id"] for event in events} == {task["id"]}
    numbers = [event["seq"] for event in events]
    assert numbers == sorted(set(numbers))
    assert events[-1]["data"]["state"] == "completed"

    assert await streamed(stand, task["id"]) == (200, events)  # it ended long ago
    since = numbers[2]
    assert await streamed(stand, task["id"], params={"since": since}) == (200, events[3:])
    assert await streamed(stand, task["id"], headers={"Last-Event-ID": str(numbers[-1] - 1)}) == (200, events[-1:])
    for late in (numbers[-1], numbers[-1] + 1, 10**17):
        assert await streamed(stand, task["id"], headers={"Last-Event-ID": str(late)}) == (204, [])


async def test_the_end_reaches_who_begins_beyond_the_log(stand: AgentStand) -> None:
    task = await stand.begin()
    streaming = asyncio.create_task(streamed(stand, task["id"], params={"since": 10**9}))
    await asyncio.sleep(0.3)
    await stand.set_state(task["id"], TaskState.FAILED, "model_refused")
    status, events = await streaming
    assert (status, [event["data"]["state"] for event in events]) == (200, ["failed"])


async def test_many_ends_in_the_middle_of_many_looks(stand: AgentStand) -> None:
    tasks = [await stand.begin() for _ in range(15)]
    readers = [asyncio.create_task(streamed(stand, task["id"])) for task in tasks]
    for task in tasks:
        await stand.set_state(task["id"], TaskState.COMPLETED)
    for status, events in await asyncio.gather(*readers):
        assert (status, events[-1]["data"]["state"]) == (200, "completed")


async def test_a_stream_ends_with_the_callers_access(stand: AgentStand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "ACCESS_CHECK_S", 0.1)
    task = await stand.begin()
    path = f"{TASKS}/{task['id']}/events"
    shown = (await passes(stand.client, stand.owner))["key's ticket"]
    async with asyncio.timeout(20), stand.client.stream("GET", path, params=shown.params) as answer:
        events = EventSource(answer).aiter_sse()
        assert json.loads((await anext(events)).data)["type"] == "task.state"
        await delete_key(stand.client, stand.owner, stand.database)
        async for event in events:
            assert json.loads(event.data)["type"] == "message.final"


async def test_operators_see_all_tasks_but_not_what_was_said(stand: AgentStand) -> None:
    task = await stand.begin("a secret")
    other = await agent_stand(stand.client, stand.database)
    theirs = await other.begin()
    refused = await stand.call("GET", "/api/admin/tasks")
    assert (refused.status_code, refused.json()["code"]) == (403, "superuser_required")
    async with stand.database.transaction() as session:
        await session.execute(update(User).where(User.id == stand.owner.user_id).values(is_superuser=True))
    listed = await stand.call("GET", "/api/admin/tasks")
    assert [item["id"] for item in listed.json()["items"]] == [theirs["id"], task["id"]]
    assert "a secret" not in listed.text
    await stand.set_state(task["id"], TaskState.RUNNING)
    query = f"/api/admin/tasks?user_id={stand.owner.user_id}&state=running"
    assert [item["id"] for item in (await stand.call("GET", query)).json()["items"]] == [task["id"]]
    assert (await stand.call("GET", f"{query}&cursor=x")).status_code == 422


class TestWithoutTemporal:
    @pytest.fixture
    def temporal(self) -> TemporalGateway:
        return TemporalGateway("127.0.0.1:1", "default")

    @pytest.fixture
    def models(self) -> LanguageModel:
        return OpenAICompatibleModel(ModelServer("http://127.0.0.1:1/v1", default_model=""))

    async def test_what_is_said_to_a_task_stands_all_the_same(self, stand: AgentStand) -> None:
        answer = await stand.call("POST", TASKS, {"project_id": stand.project_id, "prompt": "x", "model": "m"})
        assert (answer.status_code, answer.json()["retryable"]) == (503, True)
        chat = await stand.chat()
        await stand.execute(
            """INSERT INTO agent_tasks (id, user_id, project_id, chat_id, mode, prompt, prompt_seq, model,
                   approval_mode, max_steps) VALUES (:id, :user, :project, :chat, 'agent', 'x', 1, 'm', 'ask', 5)""",
            id=UUID(MISSING),
            user=stand.owner.user_id,
            project=stand.project_id,
            chat=UUID(chat),
        )
        [approval] = await stand.ask(MISSING, "run_command")
        path = f"{TASKS}/{MISSING}"
        assert (await decide(stand, MISSING, approval, "allow")).status_code == 200
        assert (await stand.call("POST", f"{path}/messages", {"content": "x"})).status_code == 202
        assert (await stand.call("PATCH", path, {"max_steps": 6})).status_code == 200
        assert (await stand.call("POST", f"{path}/cancel")).status_code == 202
        late = await stand.call("POST", f"{path}/messages", {"content": "x"})
        assert (late.status_code, late.json()["code"]) == (409, "task_ended")

    async def test_without_a_default_model_one_must_be_named(self, stand: AgentStand) -> None:
        answer = await stand.call("POST", TASKS, {"project_id": stand.project_id, "prompt": "x"})
        assert answer.status_code == 503
        assert "model" in answer.json()["detail"]


ROUTES = [
    ("GET", "", None),
    ("PATCH", "", {"max_steps": 200}),
    ("POST", "/cancel", None),
    ("POST", "/approvals/{approval}", {"decision": "allow"}),
    ("POST", "/messages", {"content": "x"}),
    ("POST", "/retry", None),
    ("GET", "/events", None),
]


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
async def test_a_task_is_its_owners_alone(stand: AgentStand, method: str, path: str, body: Json | None) -> None:
    task = await stand.begin(approval_mode="ask")
    [approval] = await stand.ask(task["id"], "run_command")
    before = await stand.task(task["id"])
    there = f"{TASKS}/{task['id']}{path.format(approval=approval)}"
    missing = f"{TASKS}/{MISSING}{path.format(approval=approval)}"
    other = await register(stand.client)
    theirs = await stand.client.request(method, there, json=body, headers=other.headers)
    none = await stand.client.request(method, missing, json=body, headers=stand.owner.headers)
    assert (theirs.status_code, none.status_code, theirs.content) == (404, 404, none.content)
    assert (await stand.client.request(method, there, json=body)).status_code == 401
    made = await stand.call("POST", "/api/users/me/api-keys", {"name": "k", "scopes": ["read"]})
    key = {"Authorization": f"Bearer {made.json()['key']}"}
    if method != "GET":
        assert (await stand.client.request(method, there, json=body, headers=key)).status_code == 403
    ticket = (await stand.client.post("/api/auth/ticket", json={}, headers=stand.owner.headers)).json()["ticket"]
    if path != "/events":  # elsewhere a ticket in the query string opens nothing
        assert (await stand.client.request(method, there, json=body, params={"ticket": ticket})).status_code == 401
    theirs_ticket = (await stand.client.post("/api/auth/ticket", json={}, headers=other.headers)).json()["ticket"]
    answer = await stand.client.request(method, there, json=body, params={"ticket": theirs_ticket})
    assert answer.status_code == (404 if path == "/events" else 401)
    assert await stand.task(task["id"]) == before


async def test_lists_and_new_tasks_are_their_owners_alone(stand: AgentStand) -> None:
    task = await stand.begin()
    other = await agent_stand(stand.client, stand.database)
    assert (await other.call("GET", TASKS)).json()["items"] == []
    assert (await other.call("GET", f"{TASKS}?project_id={stand.project_id}")).status_code == 404
    for body in (
        {"project_id": stand.project_id, "prompt": "x"},
        {"project_id": other.project_id, "prompt": "x", "chat_id": task["chat_id"]},
        {"project_id": other.project_id, "prompt": "x", "chat_id": MISSING},
    ):
        answer = await other.call("POST", TASKS, body)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    mine = await agent_stand(stand.client, stand.database, stand.owner)
    body = {"project_id": mine.project_id, "prompt": "x", "chat_id": task["chat_id"]}
    assert (await mine.call("POST", TASKS, body)).status_code == 404  # my chat, but of another project
