"""A task's cancellation, as fast as Postgres can tell it: no activity waits for its next heartbeat to hear of one."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar
from uuid import UUID

from storage import agent_tasks
from storage.engine import Database
from storage.event_listener import CANCELS_CHANNEL, EventListener
from workflows.contracts.errors import UnavailableError

Result = TypeVar("Result")

_LOOK_S: Final = 15.0
"""A notification that was lost with its connection costs at most this long; Temporal's own way is a second one."""


class TaskCancelledError(Exception):
    """The task's user has ended it, or it is gone: what was being done for it was broken off."""


class CancellationWatch:
    """Breaks work off when the row of its task asks for it."""

    def __init__(self, database: Database, listener: EventListener) -> None:
        self._database = database
        self._listener = listener

    async def unless_cancelled(self, task_id: UUID, work: Coroutine[Any, Any, Result]) -> Result:
        """What `work` returns. Raises `TaskCancelledError` once the work has come to its end after a cancellation."""
        working = asyncio.create_task(work)
        watching = asyncio.create_task(self._until_cancelled(task_id), name="cancellation watch")
        try:
            await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            working.cancel()
            await asyncio.wait((working,))
            raise TaskCancelledError
        finally:
            for task in (working, watching):
                task.cancel()
            await asyncio.wait((working, watching))
            for task in (working, watching):
                if not task.cancelled():
                    task.exception()  # looked at: the work's has been raised, a watch that failed is not missed

    async def _until_cancelled(self, task_id: UUID) -> None:
        async with self._listener.subscribe(CANCELS_CHANNEL, str(task_id)) as said:
            while not await self._is_cancelled(task_id):
                await said.wait(timeout_s=_LOOK_S)

    async def _is_cancelled(self, task_id: UUID) -> bool:
        try:
            return await agent_tasks.is_to_end(self._database, task_id)
        except UnavailableError:
            return False
