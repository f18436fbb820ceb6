"""People with a project, and tasks whose further life the tests write themselves: no worker runs here."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from sqlalchemy import text
from temporalio.client import Client, WorkflowExecutionDescription
from uuid6 import uuid7

from storage import agent_tasks, event_log, projects
from storage.engine import Database
from storage.tables import Approval, TaskStep, ToolCall
from tests.api.stand import Account, register
from tests.storage.records import log_of, new_project
from workflows.contracts.agent_tasks import ApprovalKind, CallState, TaskState
from workflows.contracts.events import EventType, NewEvent
from workflows.contracts.names import agent_task_id

Json = dict[str, Any]


@dataclass
class AgentStand:
    """Somebody with a project."""

    client: httpx.AsyncClient
    database: Database
    owner: Account
    project_id: int

    async def call(self, method: str, path: str, body: Json | None = None, **headers: str) -> httpx.Response:
        """A request of the owner's. Header names have `_` for `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.request(method, path, json=body, headers=self.owner.headers | named)

    async def begin(self, prompt: str = "Make it blue.", **fields: Any) -> Json:
        """A task as its 202 shows it."""
        body = {"project_id": self.project_id, "prompt": prompt, **fields}
        answer = await self.call("POST", "/api/agent/tasks", body)
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    async def chat(self) -> str:
        answer = await self.call("POST", "/api/chat", {"project_id": self.project_id})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def task(self, task_id: str) -> Json:
        answer = await self.call("GET", f"/api/agent/tasks/{task_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def set_state(self, task_id: str, state: TaskState, reason: str | None = None) -> None:
        """As the worker does."""
        async with self.database.transaction() as session:
            await projects.lock(session, self.project_id)
            row = await agent_tasks.lock(session, UUID(task_id))
            assert row is not None
            await agent_tasks.set_state(session, row, state, reason=reason)

    async def tell(self, task_id: str | None, *words: str) -> None:
        """Pieces of a model's text."""
        events = [
            NewEvent(
                project_id=self.project_id,
                type=EventType.TEXT_DELTA,
                data={"step": 1, "text": word},
                task_id=task_id,
            )
            for word in words
        ]
        async with self.database.transaction() as session:
            event_log.append(session, events)

    async def ask(
        self, task_id: str, *tools: str, kind: ApprovalKind = ApprovalKind.TOOL, left_s: float = 3600
    ) -> list[str]:
        """A step that calls the tools and asks for each; or one question about a plan. Returns the approvals' ids."""
        asked = []
        async with self.database.transaction() as session:
            session.add(TaskStep(task_id=UUID(task_id), n=1, text="I would like to …", finish_reason="tool_calls"))
            await session.flush()
            for position, tool in enumerate(tools or [""]):
                call_id = f"{task_id}-1-{position}"
                approval = Approval(
                    id=UUID(str(uuid7())),
                    task_id=UUID(task_id),
                    step=1,
                    call_id=call_id if tool else None,
                    kind=kind,
                    expires_at=datetime.now(UTC) + timedelta(seconds=left_s),
                )
                if tool:
                    call = ToolCall(
                        id=call_id,
                        task_id=UUID(task_id),
                        step=1,
                        position=position,
                        wave=0,
                        name=tool,
                        arguments='{"command": "ls"}',
                        state=CallState.AWAITING_APPROVAL,
                    )
                    session.add(call)
                session.add(approval)
                asked.append(str(approval.id))
        await self.set_state(task_id, TaskState.RUNNING)
        await self.set_state(task_id, TaskState.AWAITING_APPROVAL, "approval")
        return asked

    async def log(self) -> list[tuple[int, str, Json]]:
        return await log_of(self.database, self.project_id)

    async def execute(self, statement: str, **values: Any) -> None:
        async with self.database.transaction() as session:
            await session.execute(text(statement), values)


async def agent_stand(client: httpx.AsyncClient, database: Database, owner: Account | None = None) -> AgentStand:
    owner = owner or await register(client)
    return AgentStand(client, database, owner, await new_project(database, owner.user_id))


async def workflow_of(temporal: Client, task_id: str) -> WorkflowExecutionDescription:
    return await temporal.get_workflow_handle(agent_task_id(task_id)).describe()


async def signals_of(temporal: Client, task_id: str) -> list[str]:
    """The names of what the task's workflow has been told."""
    history = await temporal.get_workflow_handle(agent_task_id(task_id)).fetch_history()
    told = [event.workflow_execution_signaled_event_attributes for event in history.events]
    return [signal.signal_name for signal in told if signal.signal_name]


async def until(happened: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await happened():  # noqa: ASYNC110 -- it happens elsewhere
            await asyncio.sleep(0.05)
