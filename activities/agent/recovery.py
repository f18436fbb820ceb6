"""Tasks whose workflow was lost, or has missed a word: their rows say what it must do."""

from decimal import Decimal
from typing import Final

import structlog
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from storage import agent_tasks, task_recovery
from storage.agent_tasks import TaskRecord
from storage.engine import Database
from workflows.contracts.agent_tasks import AgentTaskInput
from workflows.contracts.names import agent_task_id
from workflows.contracts.reconcile import ReconcileInput
from workflows.contracts.starts import cancel_agent_task, nudge_agent_task, start_agent_task

log = structlog.get_logger()

_AT_MOST: Final = 500
"""In one pass; the next one takes the rest."""


class TaskRecovery:
    """What `Reconcile` does for tasks. `monthly_usd`: the budget of users who have none of their own."""

    def __init__(self, database: Database, client: Client, *, monthly_usd: Decimal | None) -> None:
        self._database = database
        self._client = client
        self._monthly_usd = monthly_usd

    async def mend(self, request: ReconcileInput) -> list[int]:
        """The projects of tasks that were started again, cancelled or nudged; in a dry run, that would be."""
        grace = request.grace_s
        async with self._database.transaction() as session:
            unended = await task_recovery.unended(session, older_than_s=grace, limit=_AT_MOST)
            cancelling = await task_recovery.cancelling(session, older_than_s=grace, limit=_AT_MOST)
            resumable = await task_recovery.resumable(
                session, older_than_s=grace, default_monthly_usd=self._monthly_usd, limit=_AT_MOST
            )
        lost = [task for task in unended if await self._is_lost(task)]
        if not request.dry_run:
            for task in lost:
                await start_agent_task(self._client, _input(task))
                log.warning("reconcile.task_restarted", task_id=str(task.id))
            for task in cancelling:
                await cancel_agent_task(self._client, str(task.id))
            for task in resumable:
                await nudge_agent_task(self._client, str(task.id))
        return sorted({task.project_id for task in (*lost, *cancelling, *resumable)})

    async def _is_lost(self, task: TaskRecord) -> bool:
        """Whether it has no workflow though it hasn't ended: a row ends before its workflow, so it is read last."""
        if await self._runs(task):
            return False
        async with self._database.reading() as session:
            now = await agent_tasks.get(session, task.id)
        return now is not None and not now.ended

    async def _runs(self, task: TaskRecord) -> bool:
        try:
            description = await self._client.get_workflow_handle(agent_task_id(str(task.id))).describe()
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return False
            raise
        return description.status == WorkflowExecutionStatus.RUNNING


def _input(task: TaskRecord) -> AgentTaskInput:
    return AgentTaskInput(user_id=task.user_id, project_id=task.project_id, task_id=str(task.id))
