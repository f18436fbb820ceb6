"""`dev_server`: how the project's dev server stands, what it prints, and a restart."""

import asyncio
import re
from contextlib import suppress
from typing import ClassVar, Final, Literal

from pydantic import Field

from activities.errors import ContainerMissingError
from activities.tools.arguments import ToolArguments
from activities.tools.bounds import LIMIT, readable
from activities.tools.tool import DevServerView, Tool, ToolContext, ToolKind, ToolResult
from workflows.contracts.dev_servers import DevServerState

_LOG_BYTES: Final = LIMIT - 1000
_LOG_TIMEOUT_S: Final = 5.0
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_COMMANDS: Final = {"start", "restart"}


class DevServerArguments(ToolArguments):
    """What to do with it."""

    action: Literal["status", "logs", "start", "restart"] = Field(
        description="status: how it stands. logs: its last output. start: have it running. restart: stop and start it, "
        "for changes that it doesn't pick up by itself, e.g. of its configuration or dependencies."
    )
    lines: int = Field(50, ge=1, le=500, description="How many of its last lines of output `logs` shows.")


class DevServer(Tool[DevServerArguments]):
    """The server by its control, its output by the runtime."""

    name: ClassVar = "dev_server"
    description: ClassVar = (
        "Look after the project's own dev server: its status, its last output, start or restart it. "
        "Edits of source files show by themselves; a restart is needed for little more than configuration."
    )
    kind: ClassVar = ToolKind.ALONE
    arguments: ClassVar = DevServerArguments

    def has_effects(self, arguments: DevServerArguments) -> bool:
        """See `Tool`."""
        return arguments.action in _COMMANDS

    async def run(self, context: ToolContext, arguments: DevServerArguments) -> ToolResult:
        """See `Tool`."""
        match arguments.action:
            case "status":
                return ToolResult(describe(await context.dev_server.view()))
            case "logs":
                return ToolResult(await _logs(context, arguments.lines))
            case "start":
                view = await context.dev_server.start()
            case "restart":
                view = await context.dev_server.restart(context.notes)
        return ToolResult(describe(view), failed=view.state != DevServerState.RUNNING)


def describe(view: DevServerView) -> str:
    """How the server stands, with its last lines when it failed."""
    lines = [f"The dev server's state: {view.state}"]
    if view.reason:
        lines.append(f"Reason: {view.reason}")
    if view.exit_code is not None:
        lines.append(f"Exit code: {view.exit_code}")
    if view.log_tail:
        lines += ["Its last output:", _plain(view.log_tail[-_LOG_BYTES:])]
    return "\n".join(lines)


async def _logs(context: ToolContext, lines: int) -> str:
    tail = bytearray()
    cut = False
    try:
        # A runtime that hangs in mid-answer is no reason to keep what has come.
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOG_TIMEOUT_S):
                async for piece in context.runtime.logs(context.ref, tail=lines):
                    tail += piece
                    cut = cut or len(tail) > _LOG_BYTES
                    del tail[:-_LOG_BYTES]
    except ContainerMissingError:
        return "There is no output: the dev server hasn't been started yet."
    note = f"[Only the last {_LOG_BYTES:,} bytes of these lines are shown; ask for fewer lines.]\n" if cut else ""
    return note + (_plain(readable(bytes(tail))) or "It hasn't written anything.")


def _plain(text: str) -> str:
    """Output without its colours."""
    return _COLOUR.sub("", text).rstrip()


TOOL = DevServer()
