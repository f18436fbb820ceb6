"""What a task's activities store and tell: a real database, the scripted model's real server, real files."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from temporalio.exceptions import ApplicationError

from activities.agent.accounting import AgentSettings
from activities.agent.notes import DatabaseCallNotes
from activities.ports import FilePrecondition, ModelInfo
from storage import agent_tasks, chats, task_approvals, task_decisions, task_requests, task_steps
from storage.agent_tasks import TaskRecord
from storage.engine import Database
from storage.event_fences import FencedOffError
from tests.activities.agents import Stand, call, make_stand, scripted, told
from tests.workers.test_scripted_model import Server
from workflows.contracts.agent_tasks import (
    ApprovalMode,
    CallState,
    CancelReason,
    Decision,
    NextMove,
    OnBusy,
    PauseReason,
    TaskMode,
    TaskState,
)
from workflows.contracts.errors import ConflictError, UnavailableError

MakeStand = Callable[..., Awaitable[Stand]]


@pytest.fixture(scope="module")
def model() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
async def make(database: Database, tmp_path: Path, model: Server) -> AsyncIterator[MakeStand]:
    opened: list[Any] = []

    async def make_one(**options: Any) -> Stand:
        url = str(model.client.base_url).rstrip("/")
        stand, *closing = await make_stand(database, tmp_path, url, NoRuntime(), **options)
        opened.extend(closing)
        return stand

    yield make_one
    for each in opened:
        await each.close()


class NoRuntime:
    """Tools here need no container; one that asks for it is told by an AttributeError."""


@pytest.fixture
async def stand(make: MakeStand) -> Stand:
    return await make()


# --- the loop ---


async def test_a_task_reads_writes_and_ends_and_all_of_it_is_told(stand: Stand) -> None:
    task = await stand.begin(
        {
            "steps": [
                {"text": "First I write.", "calls": [call("write_file", path="a.txt", content="one\n")]},
                {"text": "Then I look.", "calls": [call("read_file", path="a.txt"), call("list_files")]},
                {"text": "Done."},
            ]
        }
    )
    assert (await stand.drive(task)).move == NextMove.FINISH
    assert (await stand.end(task, TaskState.COMPLETED, 3)).ended
    assert await stand.files.read(stand.project.ref, "a.txt") == b"one\n"
    said = await stand.transcript(task)
    assert [step.text for step in said.steps] == ["First I write.", "Then I look.", "Done."]
    assert [each.state for each in said.calls] == [CallState.COMPLETED] * 3
    deltas = await stand.events(task, "text.delta", "step.reset")
    assert [told(deltas, n) for n in (1, 2, 3)] == [step.text for step in said.steps]
    assert [data["path"] for data in await stand.events(task, "file.changed")] == ["a.txt"]
    assert [data["state"] for data in await stand.events(task, "task.state")] == ["queued", "running", "completed"]
    assert [data["content"] for data in await stand.events(task, "message.final")][-1] == "Done."
    usage = await stand.events(task, "usage")
    async with stand.database.transaction() as session:
        stored = await agent_tasks.get(session, task.id)
    assert stored is not None
    assert (stored.input_tokens, stored.output_tokens) == (
        sum(data["input_tokens"] for data in usage),
        sum(data["output_tokens"] for data in usage),
    )


async def test_a_stored_step_is_never_asked_for_again(stand: Stand, model: Server) -> None:
    task = await stand.begin({"key": "once", "steps": [{"text": "Hi.", "calls": [call("todo", items=[])]}]})
    first = await stand.step(task, 1)
    assert await stand.step(task, 1) == first
    await stand.calls(task, first)
    await stand.calls(task, first)
    model.wait_counts("once/0", {"begun": 1, "finished": 1})
    assert len(await stand.events(task, "tool.result")) == 1


@pytest.mark.parametrize("dies_in", ["tell_changes", "note_etag"])
async def test_a_file_is_told_once_whenever_the_worker_that_wrote_it_dies(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, dies_in: str
) -> None:
    task = await stand.begin({"steps": [{"calls": [call("write_file", path="a.txt", content="one\n")]}]})
    outcome = await stand.step(task, 1)

    async def die(*_: object) -> None:
        raise UnavailableError("The worker is dead.")

    with monkeypatch.context() as death:
        death.setattr(DatabaseCallNotes, dies_in, die)
        with pytest.raises(ApplicationError, match="The worker is dead"):
            await stand.calls(task, outcome)
    await stand.calls(task, outcome)
    etag = (await stand.files.stat(stand.project.ref, "a.txt")).etag
    assert await stand.events(task, "file.changed") == [{"path": "a.txt", "op": "created", "etag": etag, "by": "agent"}]
    assert [data["exit_code"] for data in await stand.events(task, "tool.result")] == [None]


async def test_a_model_that_fails_is_asked_again_and_watchers_drop_the_first_text(stand: Stand) -> None:
    task = await stand.begin({"steps": [{"tokens": 40, "rate": 200, "fail": {"drop_after": 5}}]})
    with pytest.raises(ApplicationError) as failure:
        await stand.step(task, 1)
    assert (failure.value.type, failure.value.non_retryable) == ("model_unavailable", False)
    assert (await stand.step(task, 1)).move == NextMove.FINISH
    events = await stand.events(task, "text.delta", "step.reset")
    assert sum("text" not in data for data in events) == 1
    assert told(events, 1) == (await stand.transcript(task)).steps[0].text


async def test_an_attempt_that_was_thought_dead_says_nothing_more(stand: Stand) -> None:
    task = await stand.begin({"steps": [{"tokens": 60, "rate": 30}]})
    zombie = asyncio.create_task(stand.step(task, 1))
    await stand.until(task, "text.delta", 1)
    assert (await stand.step(task, 1)).move == NextMove.FINISH
    with pytest.raises(FencedOffError):
        await zombie
    events = await stand.events(task, "text.delta", "step.reset")
    assert told(events, 1) == (await stand.transcript(task)).steps[0].text


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (401, {"message": "no such key", "type": "auth_error"}, "model_key_refused"),
        (403, {"message": "not this model", "type": "key_model_access_denied"}, "model_key_refused"),
        (404, {"message": "no such model", "type": "invalid_request_error"}, "unknown_model"),
        (400, {"message": "bad request", "type": "invalid_request_error"}, "model_refused"),
        (
            429,
            {"message": "You exceeded your quota", "type": "x", "code": "insufficient_quota"},
            "model_quota_exhausted",
        ),
    ],
)
async def test_what_doesnt_pass_by_itself_ends_at_once(stand: Stand, status: int, body: Any, code: str) -> None:
    task = await stand.begin({"steps": [{"text": "x", "fail": {"status": status, "body": {"error": body}}}]})
    with pytest.raises(ApplicationError) as failure:
        await stand.step(task, 1)
    assert (failure.value.type, failure.value.non_retryable) == (code, True)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
async def test_what_may_pass_is_tried_again_but_not_for_ever(stand: Stand, status: int) -> None:
    body = {"error": {"message": "later", "type": "throttling_error"}}
    task = await stand.begin({"steps": [{"text": "x", "fail": {"status": status, "body": body, "times": 2}}]})
    with pytest.raises(ApplicationError) as failure:
        await stand.step(task, 1)
    assert not failure.value.non_retryable
    stand.attempt = 10
    with pytest.raises(ApplicationError) as failure:
        await stand.step(task, 1)
    assert failure.value.non_retryable


# --- tools ---


async def test_a_models_mistakes_come_back_to_it_as_answers(stand: Stand) -> None:
    task = await stand.begin(
        {
            "steps": [
                {
                    "calls": [
                        call("no_such_tool"),
                        {"name": "read_file", "arguments": "{not json"},
                        call("read_file", path="../../etc/passwd"),
                        call("read_file", path="missing.txt"),
                    ]
                },
                {"text": "I see."},
            ]
        }
    )
    assert (await stand.drive(task)).move == NextMove.FINISH
    results = await stand.results(task)
    assert [state for state, _ in results] == [CallState.FAILED] * 4
    assert "There is no tool 'no_such_tool'" in results[0][1]
    assert "arguments of read_file are wrong" in results[1][1]
    assert "etc/passwd" not in str(await stand.events(task, "file.changed"))


async def test_a_humans_edit_in_between_is_told_and_not_overwritten(stand: Stand) -> None:
    await put(stand, "a.txt", "hello\n")
    edit = call("edit_file", path="a.txt", edits=[{"search": "hello", "replace": "agent"}])
    task = await stand.begin(
        {"steps": [{"calls": [call("read_file", path="a.txt")]}, {"calls": [edit]}, {"text": "x"}]}
    )
    await stand.calls(task, await stand.step(task, 1))
    await put(stand, "a.txt", "hello, human\n")
    await stand.drive(task, 2)
    state, said = (await stand.results(task))[1]
    assert state == CallState.FAILED
    assert "changed" in said
    assert await stand.files.read(stand.project.ref, "a.txt") == b"hello, human\n"


async def test_neighbours_of_one_kind_share_a_wave_and_edits_of_one_path_take_turns(stand: Stand) -> None:
    writes = [call("write_file", path=path, content="x") for path in ("a", "b", "a")]
    task = await stand.begin({"steps": [{"calls": [call("list_files"), call("list_files"), *writes]}]})
    outcome = await stand.step(task, 1)
    assert [each.wave for each in outcome.calls] == [0, 0, 1, 1, 2]


async def test_a_model_without_function_calling_is_told_of_tools_in_text(make: MakeStand) -> None:
    stand = await make(about=ModelInfo("x", calls_tools=False))
    wanted = '<tool_call>\n{"name": "write_file", "arguments": {"path": "a.txt", "content": "by text"}}\n</tool_call>'
    task = await stand.begin(
        {"steps": [{"text": f"I write.\n{wanted}"}, {"text": "<tool_call>oops"}, {"text": "Done."}]}
    )
    assert (await stand.drive(task)).move == NextMove.FINISH
    assert await stand.files.read(stand.project.ref, "a.txt") == b"by text"
    assert [state for state, _ in await stand.results(task)] == [CallState.COMPLETED, CallState.FAILED]


async def test_a_model_that_sees_is_shown_the_last_steps_pictures_once(make: MakeStand, model: Server) -> None:
    stand = await make(about=ModelInfo("x", sees_images=True))
    steps = [{"calls": [call("list_files")]}, {"say_prompt": True, "calls": [call("list_files")]}, {"say_prompt": True}]
    task = await stand.begin({"steps": steps})
    outcome = await stand.step(task, 1)
    await stand.calls(task, outcome)
    async with stand.database.transaction() as session:
        await task_steps.add_image(session, outcome.calls[0].id, b"\x89PNG and so on")
        assert await task_steps.image_of(session, task.id, outcome.calls[0].id) == b"\x89PNG and so on"
    assert (await stand.drive(task, 2)).move == NextMove.FINISH
    roles = [
        [message["role"] for message in json.loads(step.text)["messages"]]
        for step in (await stand.transcript(task)).steps[1:]
    ]
    assert roles[0] == ["system", "user", "assistant", "tool", "user"]
    assert roles[1] == ["system", "user", "assistant", "tool", "assistant", "tool"]


# --- approvals ---


async def decide(stand: Stand, task: TaskRecord, decision: Decision, note: str | None = None) -> None:
    async with stand.database.transaction() as session:
        step = await task_steps.last(session, task.id)
        pending = [each for each in await task_approvals.of_step(session, task.id, step) if each.state == "pending"]
    async with stand.database.transaction() as session:
        await task_decisions.decide(session, task.id, pending[0].id, decision, note)


async def test_in_ask_mode_effects_wait_and_looking_does_not(stand: Stand) -> None:
    write = call("write_file", path="a.txt", content="x")
    task = await stand.begin({"steps": [{"calls": [call("list_files"), write]}, {"text": "ok"}]}, approval_mode="ask")
    outcome = await stand.step(task, 1)
    assert (outcome.move, outcome.reason) == (NextMove.WAIT, PauseReason.APPROVAL)
    assert (await state_of(stand, task))[:2] == (TaskState.AWAITING_APPROVAL, PauseReason.APPROVAL)
    assert len(await stand.events(task, "approval.requested")) == 1
    await decide(stand, task, Decision.ALLOW)
    assert (await stand.drive(task)).move == NextMove.FINISH
    assert await stand.files.read(stand.project.ref, "a.txt") == b"x"


async def test_a_denial_is_told_to_the_model_with_its_note(stand: Stand) -> None:
    write = call("write_file", path="a.txt", content="x")
    task = await stand.begin({"steps": [{"calls": [write]}, {"text": "ok"}]}, approval_mode="ask")
    await stand.step(task, 1)
    await decide(stand, task, Decision.DENY, "use b.txt")
    assert (await stand.drive(task)).move == NextMove.FINISH
    ((state, said),) = await stand.results(task)
    assert state == CallState.DENIED
    assert "use b.txt" in said
    assert not [entry for entry in (await stand.files.entries(stand.project.ref)).items if entry.path == "a.txt"]


async def test_nobodys_answer_is_a_denial(make: MakeStand) -> None:
    stand = await make(settings=AgentSettings(approval_limit_s=0.2))
    write = call("write_file", path="a.txt", content="x")
    task = await stand.begin({"steps": [{"calls": [write]}, {"text": "ok"}]}, approval_mode="ask")
    assert (await stand.step(task, 1)).move == NextMove.WAIT
    await asyncio.sleep(0.3)
    assert (await stand.drive(task)).move == NextMove.FINISH
    assert [state for state, _ in await stand.results(task)] == [CallState.DENIED]
    assert [data["state"] for data in await stand.events(task, "approval.resolved")] == ["expired"]
    async with stand.database.transaction() as session:
        approval = (await task_approvals.of_step(session, task.id, 1))[0]
        with pytest.raises(ConflictError):
            await task_decisions.decide(session, task.id, approval.id, Decision.ALLOW)


async def test_always_holds_for_the_rest_of_the_task(stand: Stand) -> None:
    writes = [{"calls": [call("write_file", path=name, content="x")]} for name in ("a", "b")]
    task = await stand.begin({"steps": [*writes, {"text": "ok"}]}, approval_mode="ask")
    await stand.step(task, 1)
    await decide(stand, task, Decision.ALLOW_ALWAYS)
    assert (await stand.drive(task)).move == NextMove.FINISH
    assert len(await stand.events(task, "approval.requested")) == 1


async def test_a_plan_is_allowed_as_one(stand: Stand) -> None:
    steps = [
        {"calls": [call("list_files")]},
        {"text": "My plan.", "calls": [call("submit_plan", plan="Write a.")]},
        {"calls": [call("write_file", path="a", content="x")]},
        {"text": "ok"},
    ]
    task = await stand.begin({"steps": steps}, approval_mode=ApprovalMode.PLAN)
    outcome = await stand.drive(task)
    assert (outcome.move, outcome.reason) == (NextMove.WAIT, PauseReason.APPROVAL)
    (asked,) = await stand.events(task, "approval.requested")
    assert (asked["kind"], asked["call"], "Write a." in asked["arguments"]) == ("plan", None, True)
    await decide(stand, task, Decision.ALLOW)
    assert (await stand.drive(task, 2)).move == NextMove.FINISH
    assert await stand.files.read(stand.project.ref, "a") == b"x"


async def test_while_it_plans_an_effect_asks_for_the_plan_and_a_denial_leaves_it_looking(stand: Stand) -> None:
    write = {"text": "I would write.", "calls": [call("write_file", path="a", content="x")]}
    task = await stand.begin({"steps": [write, {"text": "Then not."}]}, approval_mode=ApprovalMode.PLAN)
    assert (await stand.drive(task)).move == NextMove.WAIT
    await decide(stand, task, Decision.DENY, "no")
    assert (await stand.drive(task)).move == NextMove.FINISH
    assert [state for state, _ in await stand.results(task)] == [CallState.DENIED]


# --- steering, queues, ends ---


async def test_what_its_user_writes_is_seen_by_the_next_step(stand: Stand) -> None:
    task = await stand.begin({"steps": [{"calls": [call("list_files")]}, {"say_prompt": True}]})
    await stand.calls(task, await stand.step(task, 1))
    async with stand.database.transaction() as session:
        await task_decisions.steer(session, task.id, "And make it blue.")
    await stand.step(task, 2)
    said = await stand.transcript(task)
    assert [(message.content, message.step) for message in said.said] == [("And make it blue.", 2)]


async def test_what_its_user_writes_at_the_end_makes_another_step(stand: Stand) -> None:
    task = await stand.begin({"steps": [{"text": "Done."}, {"text": "Blue now."}]})
    assert (await stand.step(task, 1)).move == NextMove.FINISH
    async with stand.database.transaction() as session:
        await task_decisions.steer(session, task.id, "Blue!")
    assert not (await stand.end(task, TaskState.COMPLETED, 1)).ended
    assert (await stand.step(task, 2)).move == NextMove.FINISH
    assert (await stand.end(task, TaskState.COMPLETED, 2)).ended


async def test_one_task_of_a_chat_at_a_time_and_the_queue_keeps_its_order(stand: Stand) -> None:
    first = await stand.begin({"steps": [{"text": "one"}]})
    second = await stand.begin({"steps": [{"text": "two"}]}, chat_id=first.chat_id, on_busy=OnBusy.ENQUEUE)
    third = await stand.begin({"steps": [{"text": "three"}]}, chat_id=first.chat_id, on_busy=OnBusy.ENQUEUE)
    assert (await stand.step(first, 1)).move == NextMove.FINISH
    assert (await stand.step(second, 1)).move == NextMove.QUEUE
    assert (await stand.end(first, TaskState.COMPLETED, 1)).next_task_id == str(second.id)
    assert (await stand.step(third, 1)).move == NextMove.QUEUE
    assert (await stand.step(second, 1)).move == NextMove.FINISH


async def test_a_cancelled_answer_is_kept_as_far_as_its_watchers_saw_it(stand: Stand) -> None:
    task = await stand.begin({"steps": [{"tokens": 400, "rate": 50}]}, mode=TaskMode.CHAT)
    working = asyncio.create_task(stand.step(task, 1))
    await stand.until(task, "text.delta", 5)
    async with stand.database.transaction() as session:
        await task_requests.request_cancel(session, task.id, CancelReason.USER)
    async with asyncio.timeout(5):
        assert (await working).move == NextMove.STOP
    await stand.end(task, TaskState.CANCELLED, 1)
    seen = told(await stand.events(task, "text.delta", "step.reset"), 1)
    assert seen
    assert [step.text for step in (await stand.transcript(task)).steps] == [seen]
    async with stand.database.transaction() as session:
        assert [each.content for each in await chats.messages(session, task.chat_id, after=1, limit=9)] == [seen]
    assert (await state_of(stand, task))[:2] == (TaskState.CANCELLED, CancelReason.USER)
    assert (await stand.step(task, 1)).move == NextMove.STOP


async def test_an_end_is_written_once_and_withdraws_what_was_asked(stand: Stand) -> None:
    write = call("write_file", path="a.txt", content="x")
    task = await stand.begin({"steps": [{"calls": [write]}]}, approval_mode="ask")
    await stand.step(task, 1)
    for state in (TaskState.CANCELLED, TaskState.FAILED):
        assert (await stand.end(task, state, 1, reason="x")).ended
    assert (await state_of(stand, task))[0] == TaskState.CANCELLED
    assert [state for state, _ in await stand.results(task)] == [CallState.CANCELLED]
    assert [data["state"] for data in await stand.events(task, "approval.resolved")] == ["expired"]
    assert [data["state"] for data in await stand.events(task, "task.state")][-1] == "cancelled"


async def test_a_task_waits_for_its_projects_files_and_fails_with_them(stand: Stand) -> None:
    async def set_project(state: str) -> None:
        async with stand.database.transaction() as session:
            values = {"state": state, "id": stand.project.id}
            await session.execute(text("UPDATE projects SET state = :state WHERE id = :id"), values)

    await set_project("provisioning")
    task = await stand.begin({"steps": [{"text": "ok"}]})
    working = asyncio.create_task(stand.step(task, 1))
    await asyncio.sleep(0.5)
    assert not working.done()
    await set_project("ready")
    assert (await working).move == NextMove.FINISH
    await stand.end(task, TaskState.COMPLETED, 1)
    await set_project("failed")
    task = await stand.begin({"steps": [{"text": "ok"}]})
    with pytest.raises(ApplicationError) as failure:
        await stand.step(task, 1)
    assert (failure.value.type, failure.value.non_retryable) == ("project_failed", True)


# --- bounds ---


async def test_max_steps_pause_a_task_until_they_are_raised(stand: Stand) -> None:
    task = await stand.begin({"steps": [{"calls": [call("list_files")]}, {"text": "ok"}]}, max_steps=1)
    outcome = await stand.drive(task)
    assert (outcome.move, outcome.reason) == (NextMove.WAIT, PauseReason.MAX_STEPS)
    async with stand.database.transaction() as session:
        await task_decisions.raise_bounds(session, task.id, max_steps=5)
    assert (await stand.drive(task, 2)).move == NextMove.FINISH


async def test_a_tasks_budget_pauses_it_and_a_raise_lets_it_go_on(make: MakeStand) -> None:
    about = ModelInfo("x", input_price=Decimal("0.00001"), output_price=Decimal("0.00001"))
    stand = await make(about=about)
    steps = [{"text": "word " * 50, "calls": [call("list_files")]}] * 3
    task = await stand.begin({"steps": [*steps, {"text": "ok"}]}, budget_usd=Decimal("0.001"))
    outcome = await stand.drive(task)
    assert (outcome.move, outcome.reason) == (NextMove.WAIT, PauseReason.BUDGET)
    async with stand.database.transaction() as session:
        spent = await session.scalar(text("SELECT cost_usd FROM agent_tasks WHERE id = :id"), {"id": task.id})
        assert spent >= Decimal("0.001")
        await task_decisions.raise_bounds(session, task.id, budget_usd=Decimal(10))
    assert (await stand.drive(task)).move == NextMove.FINISH


async def test_a_users_month_bounds_all_of_their_tasks(make: MakeStand) -> None:
    about = ModelInfo("x", input_price=Decimal("0.0001"), output_price=Decimal("0.0001"))
    stand = await make(about=about, settings=AgentSettings(monthly_usd=Decimal("0.01")))
    first = await stand.begin({"steps": [{"text": "word " * 100}]})
    assert (await stand.drive(first)).move == NextMove.FINISH
    second = await stand.begin({"steps": [{"text": "more"}]})
    assert (await stand.drive(second)).reason == PauseReason.USER_BUDGET


async def test_a_transcript_that_grows_too_long_is_summarised_and_goes_on(stand: Stand, model: Server) -> None:
    await put(stand, "long.txt", "\n".join(f"line {n} " + "x" * 60 for n in range(150)))
    read = {"name": "read_file", "arguments": '{"path": "long.txt", "end_line": 12{{n}}}'}
    reads = {"text": "Step {{n}}.", "calls": [read], "repeat_steps": 30}
    script = {"key": "compacted", "context_limit": 20_000, "steps": [reads, {"text": "The end."}]}
    task = await stand.begin(script, max_steps=60)
    assert (await stand.drive(task)).move == NextMove.FINISH
    said = await stand.transcript(task)
    assert said.summary is not None
    assert said.steps[-1].text == "The end."
    assert (await state_of(stand, task))[2] == 31
    assert model.counts("compacted/too-long")


async def test_a_prompt_that_is_too_long_alone_is_a_failure_with_a_reason(stand: Stand) -> None:
    prompt = scripted({"context_limit": 100, "steps": [{"text": "x"}]}) + "word " * 2000
    task = await stand.begin(prompt, mode=TaskMode.CHAT)
    with pytest.raises(ApplicationError) as failure:
        await stand.drive(task)
    assert (failure.value.type, failure.value.non_retryable) == ("context_overflow", True)


async def test_a_running_agent_keeps_its_dev_server_awake_and_a_waiting_one_does_not(stand: Stand) -> None:
    write = call("write_file", path="a.txt", content="x")
    task = await stand.begin({"steps": [{"calls": [call("list_files")]}, {"calls": [write]}]}, approval_mode="ask")
    await stand.step(task, 1)
    assert await leases_of(stand) == ["task"]
    await stand.drive(task)
    assert await leases_of(stand) == []


# --- small words ---


async def leases_of(stand: Stand) -> list[str]:
    async with stand.database.reading() as session:
        rows = await session.execute(text("SELECT kind FROM leases WHERE project_id = :id"), {"id": stand.project.id})
        return [kind for (kind,) in rows]


async def put(stand: Stand, path: str, content: str) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield content.encode()

    await stand.files.put(stand.project.ref, path, body(), FilePrecondition())


async def state_of(stand: Stand, task: TaskRecord) -> tuple[str, str | None, int]:
    async with stand.database.reading() as session:
        stored = await agent_tasks.get(session, task.id)
        assert stored is not None
        return stored.state, stored.state_reason, await task_steps.last(session, task.id)
