"""How commands and their output are told to the model."""

from activities.errors import ContainerMissingError, NotRunningError
from activities.ports import CommandStatus
from activities.tools.bounds import LIMIT, readable
from activities.tools.tool import ToolContext, ToolFailure

HEAD = LIMIT // 4
TAIL = LIMIT - HEAD


class OutputEnds:
    """The beginning and the end of an output that comes in pieces; what is between them is not kept."""

    def __init__(self) -> None:
        self.size = 0
        self._head = bytearray()
        self._tail = bytearray()

    def add(self, piece: bytes) -> None:
        """The next piece."""
        self.size += len(piece)
        head = piece[: HEAD - len(self._head)]
        self._head += head
        self._tail += piece[len(head) :]
        if len(self._tail) > 2 * TAIL:
            del self._tail[:-TAIL]

    def text(self, call: str) -> str:
        """As the model is told, with how the rest can be read."""
        tail = bytes(self._tail[-TAIL:])
        start = self.size - len(tail)
        if start <= len(self._head):
            return readable(bytes(self._head) + tail)
        return (
            f"{readable(bytes(self._head))}\n"
            f"[… bytes {len(self._head):,} to {start:,} cut: read_output(call={call!r}, offset={len(self._head)})]\n"
            f"{readable(tail)}"
        )


def state_text(status: CommandStatus) -> str:
    """How a command stands, in a few words."""
    if status.exit_code is None:
        return "still running"
    if status.timed_out:
        return f"exit code {status.exit_code}: its time ran out, it was killed"
    return f"exit code {status.exit_code}{': ' + status.note if status.note else ''}"


async def known_status(context: ToolContext, call: str) -> CommandStatus:
    """How an earlier command of this task stands. Raises `ToolFailure` for any other id."""
    if not await context.notes.output_of(call):
        raise ToolFailure(f"This task has no run_command call with the id {call!r}; its answer names it.")
    try:
        status = await context.runtime.command_status(context.ref, call)
    except (NotRunningError, ContainerMissingError):
        raise ToolFailure(
            "The project's container isn't running, so its commands have ended and their output can't be read now. "
            "Start it with dev_server."
        ) from None
    if status is None:
        raise ToolFailure(f"Nothing is known of {call!r}: it was never begun, or its output has been cleared away.")
    return status
