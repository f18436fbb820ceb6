"""The tool `read_output`."""

import asyncio
from contextlib import suppress
from typing import ClassVar

from pydantic import BaseModel, Field

from activities.ports import CommandStatus
from activities.tools.arguments import CallId, ToolArguments
from activities.tools.bounds import LIMIT, readable
from activities.tools.command_output import known_status, state_text
from activities.tools.tool import Tool, ToolContext, ToolKind, ToolResult

MAX_WAIT_S = 30


class ReadOutputArguments(ToolArguments):
    """A range of a command's output, in bytes."""

    call: CallId = Field(description="The id of the run_command call, as its answer names it.")
    offset: int | None = Field(
        default=None, description="First byte, counted from 0; negative: from the end. Default: the last `limit` bytes."
    )
    limit: int = Field(default=LIMIT, ge=1, le=LIMIT, description="Bytes to show.")
    wait_s: int = Field(
        default=0, ge=0, le=MAX_WAIT_S, description="Wait up to so many seconds for the command to end before reading."
    )


class ReadOutput(Tool[ReadOutputArguments]):
    """Shows a part of what a command of this task has written, and how the command stands."""

    name: ClassVar[str] = "read_output"
    description: ClassVar[str] = (
        "Read a range of the output of an earlier run_command call of this task, and see whether it still runs."
    )
    kind: ClassVar[ToolKind] = ToolKind.LOOK
    arguments: ClassVar[type[BaseModel]] = ReadOutputArguments

    async def run(self, context: ToolContext, arguments: ReadOutputArguments) -> ToolResult:
        """See `Tool.run`."""
        status = await known_status(context, arguments.call)
        if status.exit_code is None and arguments.wait_s:
            await _wait(context, status, arguments.wait_s)
            status = await known_status(context, arguments.call)
        size = status.output_size
        offset = -arguments.limit if arguments.offset is None else arguments.offset
        start = min(size, offset) if offset >= 0 else max(0, size + offset)
        data = await context.runtime.command_output(
            context.ref, arguments.call, offset=start, limit=min(arguments.limit, size - start)
        )
        head = f"[{state_text(status)}; bytes {start:,} to {start + len(data):,} of {size:,}]"
        return ToolResult(f"{head}\n{readable(data)}", exit_code=status.exit_code)


async def _wait(context: ToolContext, status: CommandStatus, seconds: int) -> None:
    following = context.runtime.follow_command(context.ref, status.id, offset=status.output_size)
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            async for _ in following:
                pass


TOOL = ReadOutput()
