"""The tool `run_command`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import ClassVar

from pydantic import BaseModel, Field
from temporalio import activity

from activities.errors import ContainerMissingError, NotRunningError, RuntimeFault, RuntimeUnavailableError
from activities.ports import CommandStatus, ExecSpec
from activities.tools.arguments import MAX_PATH, PlainText, ToolArguments
from activities.tools.bounds import bounded
from activities.tools.command_output import OutputEnds, state_text
from activities.tools.tool import Tool, ToolContext, ToolFailure, ToolKind, ToolResult

MAX_TIMEOUT_S = 1800
MAX_COMMAND = 30_000
"""Characters; the kernel takes 128 KiB for one argument, and says no only when it is too late to tell."""
KILL_S = 3.0
BACKGROUND_S = 1.0
_LATE_S = 60.0
_LOG_SHOWN = 4_000


class RunCommandArguments(ToolArguments):
    """A command line, and how long it may take."""

    command: PlainText = Field(
        min_length=1, max_length=MAX_COMMAND, description="Run by sh -c in the project's container. No input, no PTY."
    )
    cwd: PlainText = Field(
        default=".", min_length=1, max_length=MAX_PATH, description="Folder to run it in, relative to the project's."
    )
    timeout_s: int = Field(
        default=120,
        ge=1,
        le=MAX_TIMEOUT_S,
        description="Seconds after which it is killed, also in the background; at most 1800.",
    )
    background: bool = Field(
        default=False,
        description="Answer after a second and let it run; see it by read_output, end it by kill_command.",
    )


class RunCommand(Tool[RunCommandArguments]):
    """Runs a command once, by the ledger in the container, and follows it to its end."""

    name: ClassVar[str] = "run_command"
    description: ClassVar[str] = (
        "Run a shell command in the project's container and wait for its end. Answers with the exit code and the "
        "output. The dev server runs beside it already: don't start another one, use dev_server."
    )
    kind: ClassVar[ToolKind] = ToolKind.ACT
    arguments: ClassVar[type[BaseModel]] = RunCommandArguments

    async def run(self, context: ToolContext, arguments: RunCommandArguments) -> ToolResult:
        """See `Tool.run`. Another attempt finds the command by its id, and follows it from its beginning."""
        spec = ExecSpec(arguments.command, arguments.cwd, timeout_s=float(arguments.timeout_s))
        ends = OutputEnds()
        async with _killed_on_cancel(context):
            status = await _start(context, spec)
            if arguments.background:
                status = await _follow_a_while(context, ends) or status
            else:
                status = await _follow(context, ends, spec.timeout_s + _LATE_S)
        output = ends.text(context.id)
        if status.exit_code is None:
            return ToolResult(
                f"Running in the background as {context.id!r}, for at most {arguments.timeout_s} s: "
                f"read_output shows its output, kill_command ends it.\n{output}"
            )
        failed = status.timed_out or bool(status.note)
        return ToolResult(f"{state_text(status)}\n{output or '(no output)'}", failed, status.exit_code)


async def _start(context: ToolContext, spec: ExecSpec) -> CommandStatus:
    """Begin it, or find it begun; the project's container is started when it doesn't run."""
    with suppress(NotRunningError, ContainerMissingError):
        return await context.runtime.start_command(context.ref, context.id, spec)
    server = await context.dev_server.start()
    if server.state != "running":
        code = "" if server.exit_code is None else f", exit code {server.exit_code}"
        log = f" Its last lines:\n{bounded(server.log_tail, _LOG_SHOWN)}\n" if server.log_tail else "\n"
        raise ToolFailure(
            f"The command was not run: the project's container doesn't run, and its start has failed "
            f"({server.reason or server.state}{code}).{log}"
            "Correct the cause in the files (package.json, studio.toml, the server's own code), then try again."
        )
    return await context.runtime.start_command(context.ref, context.id, spec)


async def _follow(context: ToolContext, ends: OutputEnds, within_s: float) -> CommandStatus:
    """Its output to its end. What was told by an earlier attempt is read again, for the answer, and not told again."""
    told = await context.output.told()
    try:
        following = context.runtime.follow_command(context.ref, context.id)
        async with asyncio.timeout(within_s), aclosing(following) as items:  # type: ignore[type-var]  # drivers' iterators are generators
            async for item in items:
                if isinstance(item, CommandStatus):
                    return item
                fresh = item[max(0, told - ends.size) :]
                ends.add(item)
                if fresh:
                    await context.output.tell(fresh, end=ends.size)
    except TimeoutError:
        raise RuntimeUnavailableError(
            "The command should have ended by now, and the container doesn't say so."
        ) from None
    raise RuntimeUnavailableError("The container doesn't know the command any more.")


async def _follow_a_while(context: ToolContext, ends: OutputEnds) -> CommandStatus | None:
    """Its first output, and its end when that came soon."""
    with suppress(TimeoutError):
        async with asyncio.timeout(BACKGROUND_S):
            return await _follow(context, ends, MAX_TIMEOUT_S)
    return None


@asynccontextmanager
async def _killed_on_cancel(context: ToolContext) -> AsyncIterator[None]:
    """Kill the command when the block is cancelled, before the cancellation goes on; it may have begun already."""
    try:
        yield
    except asyncio.CancelledError:
        if _is_over():
            killing = asyncio.ensure_future(_kill(context))
            while not killing.done():
                with suppress(asyncio.CancelledError):  # cancelled again: the kill is bounded, the first one goes on
                    await asyncio.wait([killing])
        raise


def _is_over() -> bool:
    """Whether the call is cancelled for good. Not when its worker is shut down, or taken for dead: then the next
    attempt follows the command to its end.
    """
    details = activity.cancellation_details() if activity.in_activity() else None
    return details is None or details.cancel_requested


async def _kill(context: ToolContext) -> None:
    with suppress(RuntimeFault, TimeoutError):  # the task's end kills what is left
        async with asyncio.timeout(KILL_S):
            await context.runtime.kill_command(context.ref, context.id)


TOOL = RunCommand()
