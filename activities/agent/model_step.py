"""One model call of a task: what it begins with, the stream, and what is stored of it, each in one transaction."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid5

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from activities.agent import conversation, planning
from activities.agent.accounting import Accounts, AgentSettings, OpenCall
from activities.agent.conversation import Conversation
from activities.agent.streaming import TextTeller
from activities.errors import ModelFault
from activities.ports import LanguageModel, ModelEnd, ModelInfo, ModelRequest, RequestedCall
from activities.tools import registry, text_format
from activities.working import attempt_scheduled
from storage import agent_tasks, chats, event_fences, event_log, leases, projects, task_steps
from storage.engine import Database
from storage.event_batcher import EventBatcher
from storage.event_fences import FencedOffError
from storage.projects import ProjectRecord
from storage.tables import AgentTaskRow
from storage.task_steps import NewCall, StepRecord, StepUsage
from workflows.contracts.agent_tasks import (
    FINAL_STATES,
    NextMove,
    PauseReason,
    StepOutcome,
    TaskMode,
    TaskState,
    TaskStepInput,
)
from workflows.contracts.dev_servers import LeaseKind
from workflows.contracts.errors import ConflictError, UnavailableError
from workflows.contracts.events import EventFence, EventType, NewEvent
from workflows.contracts.projects import ProjectState

LEASE_S: Final = 80 * 60.0
"""Each step keeps its task's dev server awake for half of it at least: longer than the longest command it may run."""
_CALL_IDS: Final = UUID("6f1c7a60-8f64-4bb5-9a55-0b6f4b8f7f2e")
_NOT_READABLE: Final = "invalid_tool_call"
_CHARACTERS_A_TOKEN: Final = 4
_FIRST_DELAY_S: Final = 0.1
_LONGEST_DELAY_S: Final = 2.0

log = structlog.get_logger()


@dataclass(frozen=True)
class Begun:
    """A call that has been admitted and announced: nothing stands between it and the model."""

    call: OpenCall
    fence: EventFence
    native: bool


@dataclass(frozen=True)
class Answer:
    """What a model has said."""

    text: str
    end: ModelEnd


class ModelStep:
    """Begins, streams and stores the calls of all tasks of a worker."""

    def __init__(
        self,
        database: Database,
        batcher: EventBatcher,
        models: LanguageModel,
        accounts: Accounts,
        settings: AgentSettings,
    ) -> None:
        self._database = database
        self._batcher = batcher
        self._models = models
        self._accounts = accounts
        self._settings = settings

    # --- beginning ---

    async def begin(self, step: TaskStepInput, info: ModelInfo | None) -> Begun | StepOutcome | None:
        """Admit and announce the call, or say what the rows want instead. None: something else must settle first, the
        project's provision or others' calls. Raises `ConflictError` `project_failed`.
        """
        async with self._database.transaction() as session:
            project = await projects.lock(session, step.project_id)
            row = None if project is None else await agent_tasks.lock(session, UUID(step.task_id))
            if project is None or row is None:
                return StepOutcome(move=NextMove.STOP)
            outcome = await self._instead(session, row, step.step)
            if outcome is not None:
                return outcome
            if row.mode == TaskMode.AGENT and not _has_files(project):
                return None
            await task_steps.take_in_messages(session, row.id, step.step)
            native = info is None or info.calls_tools
            sees = info is not None and info.sees_images
            said = await task_steps.transcript(session, row.id, row.chat_id, row.prompt_seq, with_images=sees)
            task = agent_tasks.record_of(row)
            talk = conversation.build(task, project.name, said, planning.offered(row), native=native)
            if self._is_too_long(talk, info):
                await agent_tasks.set_state(session, row, TaskState.RUNNING)
                return StepOutcome(move=NextMove.COMPACT)
            call = await self._accounts.admit(session, row, talk, info)
            if not isinstance(call, OpenCall):
                return call
            return Begun(call, await self._announce(session, row, step.step), native)

    async def _instead(self, session: AsyncSession, row: AgentTaskRow, n: int) -> StepOutcome | None:
        """What is to be done instead of a model call; None: it is due."""
        if row.state in FINAL_STATES or row.cancel_requested_at is not None:
            return StepOutcome(move=NextMove.STOP)
        if row.state == TaskState.QUEUED and await agent_tasks.is_chat_busy(session, row):
            return StepOutcome(move=NextMove.QUEUE)
        if await task_steps.find(session, row.id, n) is not None:
            return await self._after(session, row, n)
        if n > row.max_steps:
            return await self._accounts.pause(session, row, PauseReason.MAX_STEPS)
        return None

    async def _announce(self, session: AsyncSession, row: AgentTaskRow, n: int) -> EventFence:
        """The task runs, this attempt alone speaks of the step, and watchers drop what an earlier one has said."""
        await agent_tasks.set_state(session, row, TaskState.RUNNING)
        if row.mode == TaskMode.AGENT:
            await leases.prolong(session, row.project_id, LeaseKind.TASK, str(row.id), LEASE_S)
        subject = f"step:{n}"
        fence, first = await event_fences.claim(session, row.project_id, row.id, subject, since=attempt_scheduled())
        kind = EventType.STEP_STARTED if first else EventType.STEP_RESET
        event = NewEvent(project_id=row.project_id, type=kind, task_id=str(row.id), data={"step": n})
        event_log.append(session, [event])
        return fence

    def _is_too_long(self, talk: Conversation, info: ModelInfo | None) -> bool:
        """By a cautious guess; a model that sees it otherwise says so itself."""
        if info is None or info.context_tokens is None:
            return False
        room = info.context_tokens - min(self._settings.max_output_tokens, info.context_tokens // 4)
        return talk.size / _CHARACTERS_A_TOKEN > room

    # --- the stream ---

    async def stream(self, step: TaskStepInput, begun: Begun, key: str | None) -> Answer:
        """Ask the model and tell its text as it comes. Raises `ModelFault`, the call settled for what it has cost."""
        teller = TextTeller(self._batcher, step, begun.fence)
        try:
            end = await self._models.answer(self._request(begun.call, key), teller.add)
        except ModelFault:
            await teller.flush()
            await self._accounts.settle_failed(begun.call, teller.text)
            raise
        await teller.flush()
        return Answer(teller.text, end)

    def _request(self, call: OpenCall, key: str | None) -> ModelRequest:
        return ModelRequest(
            model=call.task.model,
            messages=call.talk.messages,
            tools=call.talk.tools,
            max_output_tokens=self._settings.max_output_tokens,
            key=key,
        )

    # --- storing ---

    async def store(self, step: TaskStepInput, begun: Begun, answer: Answer) -> StepOutcome:
        """Keep the answer, settle the call, ask for approvals, tell it all. Raises `FencedOffError` when another
        attempt has begun the step anew.

        Waits for a database that is away, as long as the attempt may take: what is paid for isn't asked for again.
        """
        delay_s, again = _FIRST_DELAY_S, False
        while True:
            try:
                return await self._store(step, begun, answer, again=again)
            except UnavailableError:
                log.warning("step.waits_for_postgres", task_id=step.task_id, step=step.step, delay_s=delay_s)
            await asyncio.sleep(delay_s)
            delay_s, again = min(2 * delay_s, _LONGEST_DELAY_S), True

    async def _store(self, step: TaskStepInput, begun: Begun, answer: Answer, *, again: bool) -> StepOutcome:
        calls = _calls_of(step, begun, answer)
        async with self._database.transaction() as session:
            project = await projects.lock(session, step.project_id)
            row = None if project is None else await agent_tasks.lock(session, begun.call.task.id)
            if row is None or row.state in FINAL_STATES:
                return StepOutcome(move=NextMove.STOP)
            if not await event_fences.stands(session, row.id, begun.fence):
                raise FencedOffError
            if again and await task_steps.find(session, row.id, step.step) is not None:
                # The commit of the try before this one succeeded; only its answer was lost.
                return await self._after(session, row, step.step)
            record = StepRecord(step.step, answer.text, answer.end.finish_reason)
            usage = await self._settle(session, row, begun.call, answer)
            await task_steps.add(session, row.id, record, calls, usage)
            if calls:
                await planning.ask(session, row, record, limit_s=self._settings.approval_limit_s)
            stored = await task_steps.calls_of(session, row.id, step.step) if calls else []
            news = [task_steps.call_event(row.project_id, row.id, call, call.state) for call in stored]
            event_log.append(session, [_usage_event(row, step.step, usage), *news])
            if not calls:
                text = event_log.storable(answer.text)
                await chats.add_message(
                    session, row.chat_id, role=chats.ASSISTANT, content=text, task_id=row.id, step=step.step
                )
            return await planning.next_move(session, row, step.step, stored, self._accounts)

    async def _after(self, session: AsyncSession, row: AgentTaskRow, n: int) -> StepOutcome:
        calls = await task_steps.calls_of(session, row.id, n)
        return await planning.next_move(session, row, n, calls, self._accounts)

    async def _settle(self, session: AsyncSession, row: AgentTaskRow, call: OpenCall, answer: Answer) -> StepUsage:
        told = answer.end.usage
        usage = told or call.reckoned(answer.text)
        cost = await self._accounts.settle(session, call, usage, estimated=told is None, task=row)
        return StepUsage(usage.input_tokens, usage.output_tokens, cost)


def _usage_event(row: AgentTaskRow, n: int, usage: StepUsage) -> NewEvent:
    data = {
        "step": n,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cost_usd": float(usage.cost_usd),
        "total_cost_usd": float(row.cost_usd),
    }
    return NewEvent(project_id=row.project_id, type=EventType.USAGE, task_id=str(row.id), data=data)


def _has_files(project: ProjectRecord) -> bool:
    """Whether the agent finds a project to work in; not while it is being provisioned."""
    if project.state == ProjectState.FAILED:
        raise ConflictError("The project could not be provisioned; make it anew.", code="project_failed")
    return project.state != ProjectState.PROVISIONING


async def collect(models: LanguageModel, call: OpenCall, settings: AgentSettings, key: str | None) -> Answer:
    """Ask a model without telling anybody. Raises `ModelFault`; settling is the caller's."""
    request = ModelRequest(
        model=call.task.model,
        messages=call.talk.messages,
        max_output_tokens=settings.max_output_tokens,
        key=key,
    )
    text: list[str] = []
    end = await models.answer(request, text.append)
    return Answer("".join(text), end)


def _calls_of(step: TaskStepInput, begun: Begun, answer: Answer) -> list[NewCall]:
    """The answer's calls. Their ids follow from the step, so that every attempt would give the same."""
    requested: Sequence[RequestedCall] = answer.end.tool_calls
    if begun.call.task.mode == TaskMode.CHAT:
        return []
    if not begun.native:
        parsed = text_format.parse(answer.text)
        if parsed.error is not None:
            unreadable = RequestedCall("", _NOT_READABLE, "{}")
            return [planning.new_call(_id(step, 0), unreadable, 0, answer=parsed.error)]
        requested = parsed.calls
    waves = registry.waves([planning.understood(call) for call in requested])
    return [
        planning.new_call(_id(step, position), call, wave)
        for position, (call, wave) in enumerate(zip(requested, waves, strict=True))
    ]


def _id(step: TaskStepInput, position: int) -> str:
    return f"call_{uuid5(_CALL_IDS, f'{step.task_id}/{step.step}/{position}').hex}"
