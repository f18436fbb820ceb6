"""The tool `kill_command`."""

from typing import ClassVar

from pydantic import BaseModel, Field

from activities.tools.arguments import CallId, ToolArguments
from activities.tools.command_output import known_status, state_text
from activities.tools.tool import Tool, ToolContext, ToolKind, ToolResult


class KillCommandArguments(ToolArguments):
    """Which command."""

    call: CallId = Field(description="The id of the run_command call, as its answer names it.")


class KillCommand(Tool[KillCommandArguments]):
    """Ends a command that runs in the background."""

    name: ClassVar[str] = "kill_command"
    description: ClassVar[str] = (
        "End a command of this task that runs in the background, with all processes that it has started."
    )
    kind: ClassVar[ToolKind] = ToolKind.ACT
    arguments: ClassVar[type[BaseModel]] = KillCommandArguments

    async def run(self, context: ToolContext, arguments: KillCommandArguments) -> ToolResult:
        """See `Tool.run`."""
        before = await known_status(context, arguments.call)
        if before.exit_code is not None:
            return ToolResult(f"It had ended already: {state_text(before)}.", exit_code=before.exit_code)
        await context.runtime.kill_command(context.ref, arguments.call)
        after = await known_status(context, arguments.call)
        if after.exit_code is None:
            return ToolResult("It doesn't end; look again with read_output.", failed=True)
        return ToolResult(f"It was ended ({state_text(after)}).", exit_code=after.exit_code)


TOOL = KillCommand()
