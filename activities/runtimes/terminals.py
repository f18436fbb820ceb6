"""A shell's client: frames in, bytes out, over a channel to the session's host in the container."""

import json
import struct
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from activities.errors import ResourcesExhaustedError
from activities.runtimes.guest import Channel, Guest
from activities.runtimes.inside.terminals import FULL
from workflows.contracts.names import ProjectRef

SESSION_LIMIT: Final = 8
"""Shells that one project may have at a time."""

IDLE_S: Final = 4 * 3600.0
"""Seconds after which a shell without a client ends."""

_HEADER: Final = struct.Struct(">cI")
_PIECE: Final = 64 * 1024


class ChannelTerminal:
    """`Terminal` over a channel."""

    def __init__(self, session: str, channel: Channel) -> None:
        self.session = session
        self._channel = channel

    async def read(self) -> bytes:
        """Return the next bytes; empty when the shell has ended. Raises `ResourcesExhaustedError`."""
        while (piece := await self._channel.read()) is not None:
            if piece.stream == "stdout":
                return piece.data
        if await self._channel.exit_code() == FULL:
            raise ResourcesExhaustedError(f"This project has {SESSION_LIMIT} terminals open; close one first.")
        return b""

    async def write(self, data: bytes) -> None:
        """Type `data`."""
        for start in range(0, len(data), _PIECE):
            await self._frame(b"d", data[start : start + _PIECE])

    async def resize(self, cols: int, rows: int) -> None:
        """Tell the shell the window's size."""
        await self._frame(b"r", json.dumps({"cols": cols, "rows": rows}).encode())

    async def _frame(self, kind: bytes, payload: bytes) -> None:
        await self._channel.write(_HEADER.pack(kind, len(payload)) + payload)


@asynccontextmanager
async def open_terminal(
    guest: Guest, ref: ProjectRef, *, session: str | None, cols: int, rows: int
) -> AsyncIterator[ChannelTerminal]:
    """See `Runtime.terminal`."""
    name = session or uuid.uuid4().hex
    async with guest.terminal(ref, session=name, cols=cols, rows=rows, limit=SESSION_LIMIT, idle_s=IDLE_S) as channel:
        yield ChannelTerminal(name, channel)
