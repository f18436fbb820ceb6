"""`AgentTask`: model call → tool calls → … until the model ends, a bound is reached, or somebody ends it.

Its rows say where it is; the workflow only says what comes next. So every step may be asked for again, a new run begins
where the last one was lost, and a signal is no more than a word that there is something new to read.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, FailureError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from workflows import policies
    from workflows.activity_calls import Result, perform
    from workflows.contracts.agent_tasks import (
        AgentTaskActivities,
        AgentTaskInput,
        CancelReason,
        NextMove,
        PauseReason,
        PlannedCall,
        StepOutcome,
        TaskEnding,
        TaskState,
        TaskStepInput,
        ToolCallInput,
    )
    from workflows.contracts.names import agent_task_id
    from workflows.contracts.starts import TASK_STATE
    from workflows.failures import cause_of
    from workflows.handover import hand_over, should_hand_over

_LONG_HISTORY = 1024 * 1024
"""Bytes of history after which a run hands over to the next: half of what a run may never reach."""
_QUEUE_LOOK = timedelta(minutes=10)
"""How often a queued task looks by itself, should the word that its turn has come be lost."""


def _history_is_long() -> bool:
    return workflow.info().get_current_history_size() > _LONG_HISTORY


@workflow.defn(name="AgentTask", failure_exception_types=policies.PROGRAMMING_ERRORS)
class AgentTask:
    """One task, from its place in the queue to its end, over as many runs as its history takes."""

    @workflow.init
    def __init__(self, task: AgentTaskInput) -> None:
        self._task = task
        self._n = task.step
        self._looks = 0
        self._cancelled = False
        self._doing = "starting"

    # --- what it is told and asked ---

    @workflow.signal
    def look(self) -> None:
        """Something that the task may wait for has been committed."""
        self._looks += 1

    @workflow.signal
    def cancel(self) -> None:
        """The task's row asks for its cancellation."""
        self._cancelled = True

    @workflow.query
    def status(self) -> str:
        """What it does now, for operators; clients read the rows."""
        return f"step {self._n}: {self._doing}"

    # --- the task's life ---

    @workflow.run
    async def run(self, task: AgentTaskInput) -> str:  # noqa: ARG002 -- taken by __init__
        """Returns the final state. A cancellation in the Temporal UI ends the task as its user's own does."""
        working = asyncio.create_task(self._work())
        try:
            await workflow.wait_condition(lambda: self._cancelled or working.done())
        except asyncio.CancelledError:
            self._cancelled = True
        # Another task than the one that was cancelled: what is awaited from here on is carried out.
        return await asyncio.create_task(self._come_to_an_end(working))

    async def _come_to_an_end(self, working: "asyncio.Task[TaskEnding]") -> str:
        if self._cancelled:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            ending = self._ending(TaskState.CANCELLED, CancelReason.USER)
        else:
            ending = working.result()
        self._say(f"ending as {ending.state}")
        if ending.state != TaskState.COMPLETED:
            await self._perform(
                AgentTaskActivities.stop_tool_calls, self._step(), policies.COMPENSATION, "kill commands"
            )
        end = await self._perform(AgentTaskActivities.end_task, ending, policies.COMPENSATION, ending.state)
        if not end.ended:
            hand_over(self._task.model_copy(update={"step": self._n + 1}))
        self._show(ending.state)
        if end.next_task_id is not None:
            with contextlib.suppress(
                FailureError
            ):  # it isn't there yet, or no longer: its own first look sees the chat free
                await workflow.get_external_workflow_handle(agent_task_id(end.next_task_id)).signal("look")
        return ending.state

    async def _work(self) -> TaskEnding:
        """Step after step; returns how the task ends by itself."""
        try:
            while True:
                seen = self._looks
                self._say("model call")
                outcome = await self._perform(
                    AgentTaskActivities.take_step, self._step(), policies.MODEL, f"step {self._n}"
                )
                ending = await self._follow(outcome, seen)
                if ending is not None:
                    return ending
                if should_hand_over() or _history_is_long():
                    hand_over(self._task.model_copy(update={"step": self._n}))
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            code, detail = cause_of(error)
            return self._ending(TaskState.FAILED, code, detail)

    async def _follow(self, outcome: StepOutcome, seen: int) -> TaskEnding | None:
        """Do what the rows want next; the ending, when that is it. `seen`: signals that came before they were read."""
        match outcome.move:
            case NextMove.FINISH:
                return self._ending(TaskState.COMPLETED)
            case NextMove.STOP:
                return self._ending(TaskState.CANCELLED, CancelReason.USER)
            case NextMove.CALLS:
                await self._run_calls(outcome.calls)
                self._n += 1
            case NextMove.COMPACT:
                self._say("compacting")
                outcome = await self._perform(
                    AgentTaskActivities.compact_transcript, self._step(), policies.MODEL, f"compact before {self._n}"
                )
                return None if outcome.move == NextMove.COMPACT else await self._follow(outcome, seen)
            case NextMove.WAIT:
                return await self._pause(outcome, seen)
            case NextMove.QUEUE:
                self._say("queued")
                await self._until_looked(seen, workflow.now() + _QUEUE_LOOK)
        return None

    # --- tool calls ---

    async def _run_calls(self, calls: list[PlannedCall]) -> None:
        """Wave after wave, each side by side."""
        self._show(TaskState.RUNNING)
        for wave in sorted({call.wave for call in calls}):
            now = [call for call in calls if call.wave == wave]
            self._say(", ".join(call.name for call in now))
            await asyncio.gather(*(self._run_call(call) for call in now))

    async def _run_call(self, call: PlannedCall) -> None:
        request = ToolCallInput(
            user_id=self._task.user_id, project_id=self._task.project_id, task_id=self._task.task_id, call_id=call.id
        )
        try:
            await self._perform(AgentTaskActivities.run_tool_call, request, policies.TOOL, call.name)
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            await self._perform(AgentTaskActivities.fail_tool_call, request, policies.ROW, f"{call.name} failed")

    # --- waiting for people ---

    async def _pause(self, outcome: StepOutcome, seen: int) -> TaskEnding | None:
        """Wait for a word or for the time limit. An approval's limit is a denial, which the next look at it says."""
        reason = outcome.reason or PauseReason.APPROVAL
        self._say(f"waiting: {reason}")
        self._show(TaskState.AWAITING_APPROVAL)
        if await self._until_looked(seen, outcome.until) or reason == PauseReason.APPROVAL:
            return None
        return self._ending(TaskState.FAILED, reason, "It waited for as long as a paused task may, and nobody went on.")

    async def _until_looked(self, seen: int, until: datetime | None) -> bool:
        """Whether a signal came before `until`."""
        timeout = None if until is None else max(until - workflow.now(), timedelta(0))
        try:
            await workflow.wait_condition(lambda: self._looks != seen, timeout=timeout)
        except TimeoutError:
            return False
        return True

    # --- small words ---

    def _step(self) -> TaskStepInput:
        task = self._task
        return TaskStepInput(user_id=task.user_id, project_id=task.project_id, task_id=task.task_id, step=self._n)

    def _ending(self, state: TaskState, reason: str | None = None, detail: str | None = None) -> TaskEnding:
        return TaskEnding(task=self._step(), state=state, reason=reason, detail=detail)

    def _say(self, doing: str) -> None:
        self._doing = doing
        workflow.set_current_details(self.status())

    def _show(self, state: TaskState) -> None:
        """Let operators search by state; the first and the usual one go unsaid, since each change costs an event."""
        shown = workflow.info().typed_search_attributes.get(TASK_STATE)
        if shown != state and not (shown is None and state == TaskState.RUNNING):
            workflow.upsert_search_attributes([TASK_STATE.value_set(state)])

    async def _perform(
        self,
        activity: Callable[[Any, Any], Awaitable[Result]],
        argument: object,
        policy: workflow.ActivityConfig,
        summary: str,
    ) -> Result:
        return await perform(activity, argument, policy, summary)
