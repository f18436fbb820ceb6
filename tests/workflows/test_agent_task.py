"""`AgentTask` over small worlds, on a real Temporal server."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from temporalio.client import WorkflowExecutionDescription, WorkflowHandle
from temporalio.testing import WorkflowEnvironment

from tests.workflows import worlds
from workflows import agent_task
from workflows.agent_task import AgentTask
from workflows.contracts.agent_tasks import (
    AgentTaskInput,
    CancelReason,
    NextMove,
    PauseReason,
    PlannedCall,
    StepOutcome,
    TaskState,
)
from workflows.contracts.names import agent_task_id
from workflows.contracts.starts import TASK_STATE

LATER = timedelta(hours=1)
WAIT = StepOutcome(move=NextMove.WAIT, reason=PauseReason.APPROVAL, until=datetime(2100, 1, 1, tzinfo=UTC))


def task_input(name: str, step: int = 1) -> AgentTaskInput:
    return AgentTaskInput(user_id=1, project_id=2, task_id=name, step=step)


def calls(*ids: str, wave: int = 0) -> list[PlannedCall]:
    return [PlannedCall(id=call_id, name="run_command", wave=wave) for call_id in ids]


async def start(
    environment: WorkflowEnvironment, name: str, task: AgentTaskInput | None = None
) -> WorkflowHandle[Any, str]:
    return await environment.client.start_workflow(
        AgentTask.run, task or task_input(name), id=agent_task_id(name), task_queue=name
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 -- another thread of events than ours, the server's, makes it true
            await asyncio.sleep(0.02)


async def result(handle: WorkflowHandle[Any, str]) -> str:
    async with asyncio.timeout(30):
        return await handle.result()


async def test_step_after_step_until_the_model_ends(temporal: WorkflowEnvironment) -> None:
    world = worlds.AgentWorld({1: calls("a"), 2: [*calls("b"), *calls("c", wave=1)]})
    async with worlds.worker(temporal.client, "loop", world):
        assert await result(await start(temporal, "loop")) == TaskState.COMPLETED
    assert world.notes == ["step 1", "call a", "step 2", "call b", "call c", "step 3", "completed"]


async def test_calls_of_one_wave_run_side_by_side(temporal: WorkflowEnvironment) -> None:
    world = worlds.SideBySide({1: calls("a", "b", "c")}, together=3)
    async with worlds.worker(temporal.client, "waves", world):
        assert await result(await start(temporal, "waves")) == TaskState.COMPLETED


async def test_a_cancel_breaks_a_call_off_kills_and_ends(temporal: WorkflowEnvironment) -> None:
    world = worlds.EndlessCall({1: calls("a")})
    async with worlds.worker(temporal.client, "cancel", world):
        handle = await start(temporal, "cancel")
        await until(lambda: "call begun" in world.notes)
        await handle.signal("cancel")
        assert await result(handle) == TaskState.CANCELLED
    assert world.notes[-2:] == ["commands killed", "cancelled"]
    assert world.endings[0].reason == CancelReason.USER


async def test_an_operators_cancel_in_the_ui_ends_it_as_a_users_does(temporal: WorkflowEnvironment) -> None:
    world = worlds.EndlessCall({1: calls("a")})
    async with worlds.worker(temporal.client, "operator", world):
        handle = await start(temporal, "operator")
        await until(lambda: "call begun" in world.notes)
        await handle.cancel()
        assert await result(handle) == TaskState.CANCELLED
    assert world.notes[-2:] == ["commands killed", "cancelled"]


async def test_a_pause_waits_for_a_word_and_looks_again(temporal: WorkflowEnvironment) -> None:
    world = worlds.AgentWorld()
    world.moves[1] = [WAIT, WAIT]
    async with worlds.worker(temporal.client, "pause", world):
        handle = await start(temporal, "pause")
        await until(lambda: world.looks == 1)
        await _until_state(handle, TaskState.AWAITING_APPROVAL)
        await handle.signal("look")
        await until(lambda: world.looks == 2)
        await handle.signal("look")
        assert await result(handle) == TaskState.COMPLETED


async def test_a_word_that_comes_while_the_rows_are_read_is_not_lost(temporal: WorkflowEnvironment) -> None:
    world = worlds.WordWhileReading(temporal.client, WAIT)
    async with worlds.worker(temporal.client, "early", world):
        assert await result(await start(temporal, "early")) == TaskState.COMPLETED
    assert world.looks == 2


async def test_an_approvals_time_limit_is_looked_at_and_a_bounds_ends_the_task(skipping: WorkflowEnvironment) -> None:
    soon = await skipping.get_current_time() + LATER
    world = worlds.AgentWorld()
    world.moves[1] = [
        StepOutcome(move=NextMove.WAIT, reason=PauseReason.APPROVAL, until=soon),
        StepOutcome(move=NextMove.WAIT, reason=PauseReason.BUDGET, until=soon + LATER),
    ]
    async with worlds.worker(skipping.client, "limit", world):
        assert await result(await start(skipping, "limit")) == TaskState.FAILED
    assert (world.endings[0].reason, world.looks) == (PauseReason.BUDGET, 2)


async def test_a_queued_task_looks_by_itself_when_no_word_comes(skipping: WorkflowEnvironment) -> None:
    world = worlds.AgentWorld()
    world.moves[1] = [StepOutcome(move=NextMove.QUEUE), StepOutcome(move=NextMove.QUEUE)]
    async with worlds.worker(skipping.client, "queued", world):
        assert await result(await start(skipping, "queued")) == TaskState.COMPLETED


async def test_the_end_hands_over_to_the_next_of_the_chat(temporal: WorkflowEnvironment) -> None:
    first, second = worlds.AgentWorld(), worlds.AgentWorld()
    second.moves[1] = [StepOutcome(move=NextMove.QUEUE)]
    first.following = "second"
    async with (
        worlds.worker(temporal.client, "first", first),
        worlds.worker(temporal.client, "second", second),
    ):
        waiting = await start(temporal, "second")
        await until(lambda: second.looks == 1)
        await result(await start(temporal, "first"))
        assert await result(waiting) == TaskState.COMPLETED


async def test_an_end_without_a_follower_there_is_an_end(temporal: WorkflowEnvironment) -> None:
    world = worlds.AgentWorld()
    world.following = "nobody"
    async with worlds.worker(temporal.client, "alone", world):
        assert await result(await start(temporal, "alone")) == TaskState.COMPLETED


async def test_what_its_user_writes_at_the_last_moment_is_another_step(temporal: WorkflowEnvironment) -> None:
    world = worlds.AgentWorld()
    world.unseen_at_the_end = 1
    async with worlds.worker(temporal.client, "last-word", world):
        assert await result(await start(temporal, "last-word")) == TaskState.COMPLETED
    assert world.notes == ["step 1", "goes on", "step 2", "completed"]


async def test_too_long_a_transcript_is_compacted_and_the_step_taken_again(temporal: WorkflowEnvironment) -> None:
    world = worlds.AgentWorld()
    world.moves[1] = [StepOutcome(move=NextMove.COMPACT)]
    async with worlds.worker(temporal.client, "long", world):
        assert await result(await start(temporal, "long")) == TaskState.COMPLETED
    assert world.notes == ["compact 1", "step 1", "completed"]


async def test_a_tool_that_cant_be_run_is_told_to_the_model(temporal: WorkflowEnvironment) -> None:
    world = worlds.BrokenTool({1: calls("a")})
    async with worlds.worker(temporal.client, "broken", world):
        assert await result(await start(temporal, "broken")) == TaskState.COMPLETED
    assert world.notes == ["step 1", "failed a", "step 2", "completed"]


async def test_a_failure_says_why(temporal: WorkflowEnvironment) -> None:
    world = worlds.RefusedKey()
    async with worlds.worker(temporal.client, "refused", world):
        assert await result(await start(temporal, "refused")) == TaskState.FAILED
    assert (world.endings[0].reason, world.endings[0].detail) == ("model_key_refused", "The key was refused.")


async def test_a_cancelled_row_ends_the_task_also_when_the_signal_is_lost(temporal: WorkflowEnvironment) -> None:
    world = worlds.AgentWorld()
    world.moves[1] = [StepOutcome(move=NextMove.STOP)]
    async with worlds.worker(temporal.client, "lost", world):
        assert await result(await start(temporal, "lost")) == TaskState.CANCELLED


async def test_150_steps_of_three_calls_stay_far_below_the_limit_of_a_history(temporal: WorkflowEnvironment) -> None:
    world = worlds.AgentWorld({n: calls(f"{n}a", f"{n}b", f"{n}c") for n in range(1, 151)})
    async with worlds.worker(temporal.client, "many", world):
        handle = await start(temporal, "many")
        async with asyncio.timeout(120):
            assert await handle.result() == TaskState.COMPLETED
    assert [note for note in world.notes if note.startswith("step")] == [f"step {n}" for n in range(1, 152)]
    runs = [
        await temporal.client.get_workflow_handle(run.id, run_id=run.run_id).describe()
        async for run in temporal.client.list_workflows(f"WorkflowId = '{agent_task_id('many')}'")
    ]
    assert len(runs) == 1
    assert max(_history_size(run) for run in runs) < 2 * 1024 * 1024


async def test_a_long_history_goes_on_in_another_run_at_the_same_step(
    temporal: WorkflowEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_task, "_LONG_HISTORY", 20_000)
    world = worlds.AgentWorld({n: calls(f"{n}a") for n in range(1, 31)})
    async with worlds.worker(temporal.client, "runs", world):
        assert await result(await start(temporal, "runs")) == TaskState.COMPLETED
    assert world.notes == [
        *(note for n in range(1, 31) for note in (f"step {n}", f"call {n}a")),
        "step 31",
        "completed",
    ]
    async with asyncio.timeout(20):
        while not [run async for run in temporal.client.list_workflows("ExecutionStatus = 'ContinuedAsNew'")]:  # noqa: ASYNC110 -- as above
            await asyncio.sleep(0.1)


def _history_size(run: WorkflowExecutionDescription) -> int:
    return int(run.raw_description.workflow_execution_info.history_size_bytes)


async def _until_state(handle: WorkflowHandle[Any, str], state: TaskState) -> None:
    async with asyncio.timeout(20):
        while (await handle.describe()).typed_search_attributes.get(TASK_STATE) != state:  # noqa: ASYNC110 -- as above
            await asyncio.sleep(0.1)
