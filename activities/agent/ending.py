"""The end of a task, whichever way it came: what was begun is closed, and what watchers have seen is kept."""

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from storage import agent_tasks, chats, event_fences, leases, model_ledger, projects, task_approvals, task_steps
from storage.engine import Database
from storage.tables import AgentTaskRow
from storage.task_steps import StepRecord
from workflows.contracts.agent_tasks import FINAL_STATES, CallState, TaskEnd, TaskEnding, TaskState
from workflows.contracts.dev_servers import LeaseKind

_UNFINISHED = "The task ended before this call did."


class TaskEndings:
    """Ends tasks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def end(self, ending: TaskEnding) -> TaskEnd:
        """Write the end down, once. A completed task whose user has written to it meanwhile goes on instead."""
        async with self._database.transaction() as session:
            project = await projects.lock(session, ending.task.project_id)
            row = None if project is None else await agent_tasks.lock(session, UUID(ending.task.task_id))
            if row is None:
                return TaskEnd(ended=True)
            if row.state not in FINAL_STATES:
                state, reason = _as_asked(row, ending)
                if state == TaskState.COMPLETED and await task_steps.has_unseen(session, row.id):
                    return TaskEnd(ended=False)
                await self._close(session, row, state, ending.task.step)
                await agent_tasks.set_state(session, row, state, reason=reason, detail=ending.detail)
            following = await agent_tasks.next_queued(session, row.chat_id)
            return TaskEnd(ended=True, next_task_id=None if following is None else str(following))

    async def _close(self, session: AsyncSession, row: AgentTaskRow, state: TaskState, n: int) -> None:
        # Nothing that is still on its way is written after this.
        await event_fences.lift(session, row.project_id, row.id)
        await self._keep_what_was_told(session, row, state, n)
        await task_approvals.withdraw(session, row)
        for call in await task_steps.open_calls(session, row.id):
            await task_steps.end_call(
                session, row.project_id, row.id, call, state=CallState.CANCELLED, result=_UNFINISHED
            )
        await model_ledger.settle_lost(session, row.id)
        for kind in (LeaseKind.TASK, LeaseKind.APPROVAL):
            await leases.release(session, row.project_id, kind, str(row.id))

    async def _keep_what_was_told(self, session: AsyncSession, row: AgentTaskRow, state: TaskState, n: int) -> None:
        """Of an answer that was broken off, the transcript has what its watchers have seen, no more and no less."""
        if await task_steps.find(session, row.id, n) is not None:
            return
        text = await task_steps.told_text(session, row.id, n)
        if not text:
            return
        await task_steps.add(session, row.id, StepRecord(n, text, finish_reason=state))
        await chats.add_message(session, row.chat_id, role=chats.ASSISTANT, content=text, task_id=row.id, step=n)


def _as_asked(row: AgentTaskRow, ending: TaskEnding) -> tuple[TaskState, str | None]:
    """A cancellation's reason stands in the row: who asked for it says why. One by an operator has none there."""
    if ending.state == TaskState.CANCELLED:
        return TaskState.CANCELLED, row.cancel_reason or ending.reason
    return ending.state, ending.reason
