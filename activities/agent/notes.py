"""What a tool call remembers and tells, in Postgres: every write only while this attempt is the call's newest."""

import codecs
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from activities.ports import FileChange
from activities.tools.tool import CallNotes, OutputTeller
from storage import agent_tasks, event_fences, event_log, file_events, projects, task_steps
from storage.engine import Database
from storage.event_batcher import EventBatcher
from storage.event_fences import FencedOffError
from storage.file_events import SeenChange
from storage.tables import TaskFile
from workflows.contracts.agent_tasks import ToolCallInput
from workflows.contracts.events import EventFence, EventType, NewEvent

_TOLD_LIMIT: Final = 256 * 1024
"""Bytes of a call's output that watchers are told as they come; the rest is there to be read."""


class DatabaseCallNotes(CallNotes):
    """See `CallNotes`. `fence`: this attempt's claim on the call."""

    def __init__(self, database: Database, call: ToolCallInput, fence: EventFence) -> None:
        self._database = database
        self._call = call
        self._task_id = UUID(call.task_id)
        self._fence = fence

    async def intent(self) -> Mapping[str, Any] | None:
        """See `CallNotes`."""
        async with self._database.reading() as session:
            call = await task_steps.find_call(session, self._task_id, self._call.call_id)
        return None if call is None else call.intent

    async def note_intent(self, intent: Mapping[str, Any]) -> None:
        """See `CallNotes`."""
        async with self._standing() as session:
            await task_steps.note_intent(session, self._call.call_id, dict(intent))

    async def seen_etag(self, path: str) -> str | None:
        """See `CallNotes`."""
        async with self._database.reading() as session:
            row = await session.get(TaskFile, (self._task_id, path))
        return None if row is None else row.etag

    async def note_etag(self, path: str, etag: str | None) -> None:
        """See `CallNotes`."""
        async with self._standing() as session:
            if etag is None:
                await session.execute(delete(TaskFile).where(TaskFile.task_id == self._task_id, TaskFile.path == path))
                return
            statement = insert(TaskFile).values(task_id=self._task_id, path=path, etag=etag)
            key = [TaskFile.task_id, TaskFile.path]
            await session.execute(statement.on_conflict_do_update(index_elements=key, set_={"etag": etag}))

    async def tell_changes(self, changes: Sequence[FileChange]) -> None:
        """See `CallNotes`."""
        seen = [SeenChange(change.path, change.op, change.etag) for change in changes]
        async with self._standing() as session:
            events = [
                NewEvent(
                    project_id=self._call.project_id,
                    type=EventType.FILE_CHANGED,
                    task_id=self._call.task_id,
                    data={"path": change.path, "op": change.op, "etag": change.etag, "by": "agent"},
                )
                for change in await file_events.untold(session, self._call.project_id, seen)
            ]
            event_log.append(session, events)

    async def todo(self) -> list[dict[str, Any]]:
        """See `CallNotes`."""
        async with self._database.reading() as session:
            task = await agent_tasks.get(session, self._task_id)
        return [] if task is None else task.todo

    async def set_todo(self, items: list[dict[str, Any]]) -> None:
        """See `CallNotes`."""
        async with self._standing() as session:
            row = await agent_tasks.lock(session, self._task_id)
            if row is not None:
                row.todo = items

    async def output_of(self, call_id: str) -> bool:
        """See `CallNotes`."""
        async with self._database.reading() as session:
            call = await task_steps.find_call(session, self._task_id, call_id)
        return call is not None and call.started_at is not None

    @asynccontextmanager
    async def _standing(self) -> AsyncIterator[AsyncSession]:
        """A transaction in which nobody else can take the call over. Raises `FencedOffError`."""
        async with self._database.transaction() as session:
            await projects.lock(session, self._call.project_id)
            if not await event_fences.stands(session, self._task_id, self._fence):
                raise FencedOffError
            yield session


class LoggedOutput(OutputTeller):
    """See `OutputTeller`: events `tool.output`, cut at whole characters."""

    def __init__(self, database: Database, batcher: EventBatcher, call: ToolCallInput, fence: EventFence) -> None:
        self._database = database
        self._batcher = batcher
        self._call = call
        self._fence = fence
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    async def told(self) -> int:
        """See `OutputTeller`."""
        async with self._database.reading() as session:
            return await task_steps.told_output(session, UUID(self._call.task_id), self._call.call_id)

    async def tell(self, data: bytes, *, end: int) -> None:
        """See `OutputTeller`."""
        if end - len(data) >= _TOLD_LIMIT:
            return
        text = self._decoder.decode(data)
        if end >= _TOLD_LIMIT:
            text += "\n… there is more; it isn't shown as it comes.\n"
        whole = end - len(self._decoder.getstate()[0])
        if text:
            body = {"call": self._call.call_id, "stream": "output", "text": text, "end": whole}
            await self._batcher.put(
                NewEvent(
                    project_id=self._call.project_id,
                    type=EventType.TOOL_OUTPUT,
                    task_id=self._call.task_id,
                    data=body,
                    fence=self._fence,
                )
            )
