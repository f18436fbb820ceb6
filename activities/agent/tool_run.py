"""One tool call of a task: claimed, run, and its answer stored before it is told."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import structlog

from activities.agent.notes import DatabaseCallNotes, LoggedOutput
from activities.errors import RuntimeFault
from activities.ports import FileStore, Runtime
from activities.tools import registry
from activities.tools.tool import DevServerControl, PreviewAccess, ToolContext, ToolFailure, ToolResult
from activities.working import attempt_scheduled
from storage import agent_tasks, event_fences, projects, task_steps
from storage.engine import Database
from storage.event_batcher import EventBatcher
from storage.event_fences import FencedOffError
from storage.task_steps import CallRecord
from workflows.contracts.agent_tasks import CallState, ToolCallInput
from workflows.contracts.errors import StudioError
from workflows.contracts.events import EventFence
from workflows.contracts.names import ProjectRef

log = structlog.get_logger()

COMMAND_TOOL: Final = "run_command"
_OUR_FAULT: Final = "The tool failed through a fault of the service, not of yours. Try another way."
_LOST: Final = "The tool could not be run to its end. Look whether it had effects before you call it again."


@dataclass(frozen=True)
class Workshop:
    """What tools work with. `dev_server`, `preview`: of one project."""

    files: FileStore
    runtime: Runtime
    dev_server: Callable[[ProjectRef], DevServerControl]
    preview: Callable[[ProjectRef], PreviewAccess]


@dataclass(frozen=True)
class _Claimed:
    call: CallRecord
    fence: EventFence


class ToolRuns:
    """Runs the tool calls of all tasks of a worker."""

    def __init__(self, database: Database, batcher: EventBatcher, workshop: Workshop) -> None:
        self._database = database
        self._batcher = batcher
        self._workshop = workshop

    async def run(self, request: ToolCallInput) -> None:
        """Run it unless it has its answer, or its task has been cancelled. Raises what may pass by itself."""
        claimed = await self._claim(request)
        if claimed is None:
            return
        result = await self._do(request, claimed)
        await self._store(request, claimed, result)

    async def fail(self, request: ToolCallInput) -> None:
        """Store that it could not be run."""
        claimed = await self._claim(request)
        if claimed is not None:
            await self._store(request, claimed, ToolResult(_LOST, failed=True))

    async def stop(self, ref: ProjectRef, task_id: UUID) -> None:
        """Kill what the task's commands have left running."""
        async with self._database.transaction() as session:
            commands = await task_steps.commands(session, task_id, COMMAND_TOOL)
        for command in commands:
            try:
                await self._workshop.runtime.kill_command(ref, command.id)
            except RuntimeFault as fault:
                if fault.retryable:
                    raise
                return  # there is no container any more, and so no process

    async def _claim(self, request: ToolCallInput) -> _Claimed | None:
        """Begin the call, from now on spoken of by this attempt alone. None: there is nothing to run."""
        task_id = UUID(request.task_id)
        async with self._database.transaction() as session:
            if await projects.lock(session, request.project_id) is None:
                return None
            row = await agent_tasks.lock(session, task_id)
            call = await task_steps.find_call(session, task_id, request.call_id)
            if row is None or call is None or call.ended or row.cancel_requested_at is not None:
                return None
            since = attempt_scheduled()
            fence, _ = await event_fences.claim(session, row.project_id, task_id, call.id, since=since)
            await task_steps.begin_call(session, row.project_id, call, task_id)
        return _Claimed(call, fence)

    async def _do(self, request: ToolCallInput, claimed: _Claimed) -> ToolResult:
        call = claimed.call
        try:
            tool = registry.all_tools().get(call.name)
            if tool is None:
                known = ", ".join(registry.all_tools())
                return ToolResult(f"There is no tool {call.name!r}. There are: {known}.", failed=True)
            return await tool.run(self._context(request, claimed), registry.parse(tool, call.arguments))
        except ToolFailure as failure:
            return ToolResult(str(failure), failed=True)
        except (RuntimeFault, StudioError) as error:
            if error.retryable:
                raise
            return ToolResult(str(error), failed=True)
        except FencedOffError:
            raise
        except Exception:  # the top of the agent's loop: a tool's bug is no reason to end a task
            log.exception("tool.failed", tool=call.name, call=call.id)
            return ToolResult(_OUR_FAULT, failed=True)

    def _context(self, request: ToolCallInput, claimed: _Claimed) -> ToolContext:
        workshop = self._workshop
        return ToolContext(
            id=claimed.call.id,
            ref=request.ref,
            files=workshop.files,
            runtime=workshop.runtime,
            notes=DatabaseCallNotes(self._database, request, claimed.fence),
            output=LoggedOutput(self._database, self._batcher, request, claimed.fence),
            dev_server=workshop.dev_server(request.ref),
            preview=workshop.preview(request.ref),
        )

    async def _store(self, request: ToolCallInput, claimed: _Claimed, result: ToolResult) -> None:
        """Raises `FencedOffError` when another attempt has taken the call over."""
        task_id = UUID(request.task_id)
        async with self._database.transaction() as session:
            if await projects.lock(session, request.project_id) is None:
                return
            if not await event_fences.stands(session, task_id, claimed.fence):
                raise FencedOffError
            if result.image is not None:
                await task_steps.add_image(session, claimed.call.id, result.image)
            await task_steps.end_call(
                session,
                request.project_id,
                task_id,
                claimed.call,
                state=CallState.FAILED if result.failed else CallState.COMPLETED,
                result=result.text,
                exit_code=result.exit_code,
            )
