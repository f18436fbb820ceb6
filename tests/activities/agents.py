"""Task activities over a real database and a scripted model's real server, driven as their workflow drives them."""

import asyncio
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import text
from temporalio.service import RPCError, RPCStatusCode
from temporalio.testing import ActivityEnvironment

from activities.agent.accounting import Accounts, AgentSettings
from activities.agent.cancellation import CancellationWatch
from activities.agent.compaction import Compaction
from activities.agent.ending import TaskEndings
from activities.agent.keys import UserKeys
from activities.agent.model_step import ModelStep
from activities.agent.tool_run import ToolRuns, Workshop
from activities.agent_tasks import AgentParts, AgentTasks
from activities.dev_server_control import DevServerControls
from activities.files.store import DiskFileStore
from activities.language_models.openai_compatible import ModelServer, OpenAICompatibleModel
from activities.ports import ModelInfo
from activities.preview_access import PreviewAccesses
from storage import task_requests, task_steps
from storage.agent_tasks import TaskRecord
from storage.engine import Database
from storage.event_batcher import EventBatcher
from storage.event_listener import EventListener
from storage.secret_box import SecretBox
from storage.task_requests import NewTask
from tests.storage.records import new_dev_server
from workflows.contracts.agent_tasks import (
    ApprovalMode,
    NextMove,
    OnBusy,
    StepOutcome,
    TaskEnd,
    TaskEnding,
    TaskMode,
    TaskState,
    TaskStepInput,
    ToolCallInput,
)

Script = dict[str, Any]


class DeafTemporal:
    """No workflow service answers: dev servers can't be woken, and nothing else here needs one."""

    async def start_workflow(self, *_: object, **__: object) -> None:
        raise RPCError("away", RPCStatusCode.UNAVAILABLE, b"")


class PricedModel(OpenAICompatibleModel):
    """Says of each of its models what `about` says."""

    def __init__(self, server: ModelServer, about: ModelInfo) -> None:
        super().__init__(server)
        self._about = about

    async def models(self) -> list[ModelInfo]:
        return [replace(self._about, id=info.id) for info in await super().models()]


@dataclass
class Stand:
    """One worker's task activities, and a project to work in. `attempt`: which try Temporal says that it is."""

    database: Database
    activities: AgentTasks
    project: Any
    files: DiskFileStore
    attempt: int = 1

    async def run(self, activity: Any, argument: object) -> Any:
        environment = ActivityEnvironment()
        environment.info = replace(environment.info, attempt=self.attempt)
        return await environment.run(activity, argument)

    async def begin(self, script: Script | str, **fields: Any) -> TaskRecord:
        prompt = script if isinstance(script, str) else scripted(script)
        new = NewTask(
            user_id=self.project.user_id,
            project_id=self.project.id,
            chat_id=fields.pop("chat_id", None),
            mode=fields.pop("mode", TaskMode.AGENT),
            prompt=prompt,
            model=fields.pop("model", "scripted"),
            tools=fields.pop("tools", None),
            approval_mode=fields.pop("approval_mode", ApprovalMode.AUTO),
            max_steps=fields.pop("max_steps", 50),
            budget_usd=fields.pop("budget_usd", None),
            on_busy=fields.pop("on_busy", OnBusy.REJECT),
        )
        assert not fields
        async with self.database.transaction() as session:
            return (await task_requests.create(session, new)).task

    async def step(self, task: TaskRecord, n: int) -> StepOutcome:
        outcome: StepOutcome = await self.run(self.activities.take_step, step_of(task, n))
        return outcome

    async def calls(self, task: TaskRecord, outcome: StepOutcome) -> None:
        for call in outcome.calls:
            request = ToolCallInput(
                user_id=task.user_id, project_id=task.project_id, task_id=str(task.id), call_id=call.id
            )
            await self.run(self.activities.run_tool_call, request)

    async def drive(self, task: TaskRecord, n: int = 1) -> StepOutcome:
        """Step after step, until the model has ended or somebody is waited for."""
        while True:
            outcome = await self.step(task, n)
            if outcome.move == NextMove.CALLS:
                await self.calls(task, outcome)
                n += 1
            elif outcome.move == NextMove.COMPACT:
                await self.run(self.activities.compact_transcript, step_of(task, n))
            else:
                return outcome

    async def end(
        self, task: TaskRecord, state: TaskState, n: int, *, reason: str | None = None, detail: str | None = None
    ) -> TaskEnd:
        ending = TaskEnding(task=step_of(task, n), state=state, reason=reason, detail=detail)
        ended: TaskEnd = await self.run(self.activities.end_task, ending)
        return ended

    async def events(self, task: TaskRecord, *types: str) -> list[dict[str, Any]]:
        query = text("SELECT data FROM events WHERE task_id = :id AND type = ANY(:types) ORDER BY seq")
        async with self.database.reading() as session:
            return [data for (data,) in await session.execute(query, {"id": task.id, "types": list(types)})]

    async def until(self, task: TaskRecord, kind: str, count: int) -> None:
        """Until that many events of a kind were told."""
        async with asyncio.timeout(30):
            while len(await self.events(task, kind)) < count:  # noqa: ASYNC110 -- it happens in the database
                await asyncio.sleep(0.02)

    async def transcript(self, task: TaskRecord) -> task_steps.Transcript:
        async with self.database.transaction() as session:
            return await task_steps.transcript(session, task.id, task.chat_id, task.prompt_seq)

    async def results(self, task: TaskRecord) -> list[tuple[str, str]]:
        return [(call.state, call.result or "") for call in (await self.transcript(task)).calls]


def step_of(task: TaskRecord, n: int) -> TaskStepInput:
    return TaskStepInput(user_id=task.user_id, project_id=task.project_id, task_id=str(task.id), step=n)


def scripted(script: Script) -> str:
    """A prompt that the scripted model plays; with a key of its own, so that no two tests count together."""
    return f"<script>{json.dumps({'key': uuid4().hex, **script})}</script>"


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def told(deltas: list[dict[str, Any]], n: int) -> str:
    """What watchers have assembled of a step, given `text.delta` and `step.reset` in order."""
    said = ""
    for data in deltas:
        if data["step"] == n:
            said = said + data["text"] if "text" in data else ""
    return said


async def make_stand(
    database: Database,
    root: Path,
    model_url: str,
    runtime: Any,
    *,
    about: ModelInfo | None = None,
    settings: AgentSettings | None = None,
) -> tuple[Stand, OpenAICompatibleModel, EventBatcher, EventListener]:
    agent = settings or AgentSettings()
    server = ModelServer(f"{model_url}/v1")
    models = OpenAICompatibleModel(server) if about is None else PricedModel(server, about)
    listener = EventListener(database.dsn)
    batcher = EventBatcher(database)
    accounts = Accounts(database, agent)
    files = DiskFileStore(root, None)
    temporal: Any = DeafTemporal()
    controls = DevServerControls(database, temporal, start_timeout_s=5, idle_grace_s=5)
    previews = PreviewAccesses(database, scheme="http", domain="localhost", port=None)
    project = await new_dev_server(database)
    await files.create(project.ref, None)
    parts = AgentParts(
        models=models,
        accounts=accounts,
        steps=ModelStep(database, batcher, models, accounts, agent),
        compaction=Compaction(database, models, accounts, agent),
        tools=ToolRuns(database, batcher, Workshop(files, runtime, controls.of, previews.of)),
        endings=TaskEndings(database),
        cancellation=CancellationWatch(database, listener),
        keys=UserKeys(database, temporal, SecretBox("k" * 32), is_kept=False),
        dev_servers=controls,
    )
    return Stand(database, AgentTasks(parts), project, files), models, batcher, listener
