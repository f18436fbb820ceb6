"""A transcript that has grown too long: the oldest steps are told in a summary, written by the model itself."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final
from uuid import UUID

import structlog

from activities.agent import conversation
from activities.agent.accounting import Accounts, AgentSettings, OpenCall
from activities.agent.conversation import Conversation
from activities.agent.model_step import collect
from activities.errors import ContextOverflowError, ModelFault
from activities.ports import LanguageModel, ModelInfo, ModelMessage
from storage import agent_tasks, projects, task_steps
from storage.agent_tasks import TaskRecord
from storage.engine import Database
from storage.task_steps import Summary, Transcript
from workflows.contracts.agent_tasks import FINAL_STATES, NextMove, StepOutcome, TaskStepInput

log = structlog.get_logger()

_ASK: Final = """\
Summarise the following part of a coding agent's work, for the agent itself, which goes on without the messages. Keep \
what it needs: what was asked and decided, which files were read or changed and how, commands and their outcome, \
errors, what is left to do. Leave out file contents and output that can be read again. At most 600 words."""

CUTS: Final = (4000, 1000, 250, 60)
"""Characters of each message that the model is shown for its summary: fewer each time that it is still too much."""
_WITHOUT_MODEL: Final = 200
TURN_S: Final = 0.25
"""How often a call looks whether the reservations before it have been settled."""


class Compaction:
    """Writes the summaries of all tasks of a worker."""

    def __init__(self, database: Database, models: LanguageModel, accounts: Accounts, settings: AgentSettings) -> None:
        self._database = database
        self._models = models
        self._accounts = accounts
        self._settings = settings

    async def compact(self, step: TaskStepInput, info: ModelInfo | None, key: str | None) -> StepOutcome:
        """Store a summary of the oldest half, asked for in ever shorter form until the model takes it.

        `compact` when it is stored, or what the rows want instead. Raises `ContextOverflowError` when there is nothing
        left to shorten, and other `ModelFault`s.
        """
        for cut in CUTS:
            begun = await self._begin(step, info, cut)
            while begun is None:
                await asyncio.sleep(TURN_S)
                begun = await self._begin(step, info, cut)
            if isinstance(begun, StepOutcome):
                return begun
            call, upto = begun
            try:
                text = await self._summarise(call, key)
            except ContextOverflowError:
                continue
            return await self._store(step, Summary(upto, text))
        return await self._store(step, None)

    async def _begin(
        self, step: TaskStepInput, info: ModelInfo | None, cut: int
    ) -> tuple[OpenCall, int] | StepOutcome | None:
        async with self._database.transaction() as session:
            project = await projects.lock(session, step.project_id)
            row = None if project is None else await agent_tasks.lock(session, UUID(step.task_id))
            if project is None or row is None or row.state in FINAL_STATES:
                return StepOutcome(move=NextMove.STOP)
            said = await task_steps.transcript(session, row.id, row.chat_id, row.prompt_seq)
            upto = oldest_half(said)
            talk = request(agent_tasks.record_of(row), project.name, said, upto, cut=cut)
            call = await self._accounts.admit(session, row, talk, info)
            return (call, upto) if isinstance(call, OpenCall) else call

    async def _summarise(self, call: OpenCall, key: str | None) -> str:
        try:
            answer = await collect(self._models, call, self._settings, key)
        except ModelFault:
            await self._accounts.settle_failed(call, "")
            raise
        async with self._database.transaction() as session:
            await projects.lock(session, call.task.project_id)
            told = answer.end.usage
            usage = told or call.reckoned(answer.text)
            await self._accounts.settle(session, call, usage, estimated=told is None)
        return answer.text

    async def _store(self, step: TaskStepInput, summary: Summary | None) -> StepOutcome:
        """None: the beginnings and ends of what was said, when even its shortest form was too much for the model."""
        async with self._database.transaction() as session:
            project = await projects.lock(session, step.project_id)
            row = None if project is None else await agent_tasks.lock(session, UUID(step.task_id))
            if project is None or row is None:
                return StepOutcome(move=NextMove.STOP)
            if summary is None or not summary.text.strip():
                said = await task_steps.transcript(session, row.id, row.chat_id, row.prompt_seq)
                summary = without_model(agent_tasks.record_of(row), project.name, said, oldest_half(said))
            await task_steps.add_summary(session, row.id, summary)
        log.info("task.compacted", task_id=step.task_id, upto=summary.upto)
        return StepOutcome(move=NextMove.COMPACT)


def oldest_half(transcript: Transcript) -> int:
    """Up to which step is to be summarised: about half of the text; 0: the chat before the task alone.

    Raises `ContextOverflowError` when there is nothing left but the prompt.
    """
    if not transcript.steps:
        if transcript.past:
            return 0
        raise ContextOverflowError("The task's prompt is longer than the model takes, even alone.")
    if len(transcript.steps) == 1:
        return transcript.steps[0].n
    sizes = {step.n: len(step.text) for step in transcript.steps}
    for call in transcript.calls:
        sizes[call.step] = sizes.get(call.step, 0) + len(call.arguments) + len(call.result or "")
    half, so_far = sum(sizes.values()) / 2, 0
    for step in transcript.steps[:-1]:
        so_far += sizes[step.n]
        if so_far >= half:
            return step.n
    return transcript.steps[-2].n


def request(task: TaskRecord, project: str, transcript: Transcript, upto: int, *, cut: int) -> Conversation:
    """What the model is asked for a summary up to and with step `upto`."""
    text = conversation.as_text(_part(task, project, transcript, upto), limit=cut)
    return Conversation((ModelMessage("system", _ASK), ModelMessage("user", text)), ())


def without_model(task: TaskRecord, project: str, transcript: Transcript, upto: int) -> Summary:
    """The beginnings and ends of what was said: when even its shortest form is too much for the model."""
    part = _part(task, project, transcript, upto)
    text = conversation.as_text(part, limit=_WITHOUT_MODEL)
    return Summary(upto, text[-40 * _WITHOUT_MODEL :])


def _part(task: TaskRecord, project: str, transcript: Transcript, upto: int) -> Sequence[ModelMessage]:
    """The messages that go, in order, without the system's."""
    gone = replace(
        transcript,
        steps=[step for step in transcript.steps if step.n <= upto],
        calls=[call for call in transcript.calls if call.step <= upto],
        said=[message for message in transcript.said if (message.step or 0) <= upto],
    )
    return conversation.build(task, project, gone, (), native=True).messages[1:]
