"""What every driver offers beside the server, by the same programs inside: commands, their ledger, terminals.

A driver adds its containers' life and one thing for these: `open_channel`, a process in a running container.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from activities.ports import CommandStatus, ExecExit, ExecOutput, ExecSpec, Terminal
from activities.runtimes.guest import Guest
from activities.runtimes.terminals import open_terminal
from workflows.contracts.names import ProjectRef


class GuestRuntime:
    """Base of the drivers. `guest` reaches into their containers."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def exec(self, ref: ProjectRef, spec: ExecSpec) -> AsyncIterator[ExecOutput | ExecExit]:
        """See `Runtime.exec`."""
        return self._guest.exec(ref, spec)

    async def start_command(self, ref: ProjectRef, command_id: str, spec: ExecSpec) -> CommandStatus:
        """See `Runtime.start_command`."""
        return await self._guest.start_command(ref, command_id, spec)

    async def command_status(self, ref: ProjectRef, command_id: str) -> CommandStatus | None:
        """See `Runtime.command_status`."""
        return await self._guest.command_status(ref, command_id)

    async def command_output(self, ref: ProjectRef, command_id: str, *, offset: int, limit: int) -> bytes:
        """See `Runtime.command_output`."""
        return await self._guest.command_output(ref, command_id, offset=offset, limit=limit)

    def follow_command(
        self, ref: ProjectRef, command_id: str, *, offset: int = 0
    ) -> AsyncIterator[bytes | CommandStatus]:
        """See `Runtime.follow_command`."""
        return self._guest.follow_command(ref, command_id, offset=offset)

    async def kill_command(self, ref: ProjectRef, command_id: str) -> None:
        """See `Runtime.kill_command`."""
        await self._guest.kill_command(ref, command_id)

    def terminal(
        self, ref: ProjectRef, *, session: str | None, cols: int, rows: int
    ) -> AbstractAsyncContextManager[Terminal]:
        """See `Runtime.terminal`."""
        return open_terminal(self._guest, ref, session=session, cols=cols, rows=rows)
