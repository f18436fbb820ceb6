"""The effects of a task: model calls, tool calls, and the end; each in small transactions around what takes long."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.agent.accounting import Accounts
from activities.agent.cancellation import CancellationWatch, TaskCancelledError
from activities.agent.compaction import TURN_S, Compaction
from activities.agent.ending import TaskEndings
from activities.agent.keys import UserKeys
from activities.agent.model_step import ModelStep
from activities.agent.tool_run import ToolRuns
from activities.dev_server_control import DevServerControls
from activities.errors import ContextOverflowError, ModelBudgetError, ModelFault
from activities.ports import LanguageModel, ModelInfo
from activities.working import working
from workflows.contracts.agent_tasks import (
    AgentTaskActivities,
    NextMove,
    StepOutcome,
    TaskEnd,
    TaskEnding,
    TaskMode,
    TaskStepInput,
    ToolCallInput,
)
from workflows.contracts.errors import StudioError

_TRIES_OF_A_MODEL: Final = 10
"""Attempts after which a model's passing faults end the task: about a minute and a half of back-off."""


@dataclass(frozen=True)
class AgentParts:
    """What the activities are made of, one each per worker."""

    models: LanguageModel
    accounts: Accounts
    steps: ModelStep
    compaction: Compaction
    tools: ToolRuns
    endings: TaskEndings
    cancellation: CancellationWatch
    keys: UserKeys
    dev_servers: DevServerControls


class AgentTasks(AgentTaskActivities):
    """Task activities over the database, the model and the tools."""

    def __init__(self, parts: AgentParts) -> None:
        self._parts = parts
        self._steps = parts.steps

    # --- model calls ---

    @activity.defn(name="take_step")
    async def take_step(self, step: TaskStepInput) -> StepOutcome:
        """See `AgentTaskActivities`."""
        async with working():
            return await self._unless_cancelled(step, self._take_step)

    @activity.defn(name="compact_transcript")
    async def compact_transcript(self, step: TaskStepInput) -> StepOutcome:
        """See `AgentTaskActivities`."""
        async with working():
            return await self._unless_cancelled(step, self._compact)

    async def _compact(self, step: TaskStepInput) -> StepOutcome:
        caller = await self._parts.keys.caller(step)
        if caller is None:
            return StepOutcome(move=NextMove.STOP)
        try:
            return await self._parts.compaction.compact(step, await self._info(caller.model), caller.key)
        except ModelBudgetError:
            return await self._pause_for_proxy(step)

    async def _unless_cancelled(
        self, step: TaskStepInput, work: Callable[[TaskStepInput], Coroutine[Any, Any, StepOutcome]]
    ) -> StepOutcome:
        try:
            return await self._parts.cancellation.unless_cancelled(UUID(step.task_id), work(step))
        except TaskCancelledError:
            return StepOutcome(move=NextMove.STOP)
        except ModelFault as fault:
            if fault.retryable and activity.info().attempt >= _TRIES_OF_A_MODEL:
                raise ApplicationError(str(fault), type=fault.code, non_retryable=True) from fault
            raise

    async def _take_step(self, step: TaskStepInput) -> StepOutcome:
        caller = await self._parts.keys.caller(step)
        if caller is None:
            return StepOutcome(move=NextMove.STOP)
        info = await self._info(caller.model)
        begun = await self._steps.begin(step, info)
        while begun is None:
            await asyncio.sleep(TURN_S)
            begun = await self._steps.begin(step, info)
        if isinstance(begun, StepOutcome):
            if begun.calls:
                await self._wake(step)
            return begun
        if step.step == 1 and begun.call.task.mode == TaskMode.AGENT:
            await self._wake(step)
        try:
            answer = await self._steps.stream(step, begun, caller.key)
        except ContextOverflowError:
            return StepOutcome(move=NextMove.COMPACT)
        except ModelBudgetError:
            return await self._pause_for_proxy(step)
        return await self._steps.store(step, begun, answer)

    async def _pause_for_proxy(self, step: TaskStepInput) -> StepOutcome:
        """Unless the budget was raised while the proxy refused by the old one: then the call is made again."""
        await self._parts.keys.caller(step)
        return await self._parts.accounts.pause_for_proxy(step)

    async def _wake(self, step: TaskStepInput) -> None:
        """An agent's dev server runs while it works; one that can't be started is no reason not to."""
        with contextlib.suppress(StudioError):
            await self._parts.dev_servers.of(step.ref).wake()

    async def _info(self, model: str) -> ModelInfo | None:
        """What is known of a model; None also while its server is away, which the call itself will say."""
        try:
            models = await self._parts.models.models()
        except ModelFault:
            return None
        return next((info for info in models if info.id == model), None)

    # --- tool calls ---

    @activity.defn(name="run_tool_call")
    async def run_tool_call(self, call: ToolCallInput) -> None:
        """See `AgentTaskActivities`. A cancelled one is left as it is: the task's end says what became of it."""
        async with working():
            try:
                work = self._parts.tools.run(call)
                await self._parts.cancellation.unless_cancelled(UUID(call.task_id), work)
            except TaskCancelledError:
                return

    @activity.defn(name="fail_tool_call")
    async def fail_tool_call(self, call: ToolCallInput) -> None:
        """See `AgentTaskActivities`."""
        await self._parts.tools.fail(call)

    @activity.defn(name="stop_tool_calls")
    async def stop_tool_calls(self, step: TaskStepInput) -> None:
        """See `AgentTaskActivities`."""
        async with working():
            await self._parts.tools.stop(step.ref, UUID(step.task_id))

    # --- the end ---

    @activity.defn(name="end_task")
    async def end_task(self, ending: TaskEnding) -> TaskEnd:
        """See `AgentTaskActivities`."""
        return await self._parts.endings.end(ending)
