"""Processes in a pod, over WebSocket frames: a byte that names the stream, then its data.

`v4` can't close a process's input alone: closing the connection does, which is all that our programs need.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

import aiohttp

from activities.errors import ContainerMissingError, NotRunningError, RuntimeUnavailableError
from activities.ports import ExecOutput
from activities.runtimes.guest import PROGRAM
from activities.runtimes.kubernetes_client import Cluster
from activities.runtimes.kubernetes_faults import NOT_FOUND, RefusedError, faults, message_of

_STDIN: Final = b"\x00"
_STREAMS: Final[dict[int, Literal["stdout", "stderr"]]] = {1: "stdout", 2: "stderr"}
_STATUS: Final = 3
_PIECE: Final = 64 * 1024
_BAD_REQUEST: Final = 400
_PYTHON: Final = "/usr/bin/python3"  # the image's own, whatever the project puts on PATH
_LIMITS: Final = """
import resource
try: resource.setrlimit(resource.RLIMIT_NOFILE, resource.prlimit(1, resource.RLIMIT_NOFILE))
except OSError: pass
"""
"""An exec doesn't have the limits that the container's first process gave itself."""


class PodChannel:
    """`Channel` over an exec's connection. What nobody reads stays in its buffers and holds the writer back."""

    def __init__(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        self._connection = connection
        self._status: dict[str, Any] | None = None

    async def read(self) -> ExecOutput | None:
        """The next piece of output; None at the end."""
        with faults():
            while True:
                message = await self._connection.receive()
                if message.type is not aiohttp.WSMsgType.BINARY:
                    self._check_end(message)
                    return None
                number, data = message.data[0], message.data[1:]
                if number == _STATUS and data:
                    self._status = json.loads(data)
                elif data and number in _STREAMS:
                    return ExecOutput(_STREAMS[number], data)

    async def write(self, data: bytes) -> None:
        """To its standard input."""
        with faults():
            for start in range(0, len(data), _PIECE):
                await self._connection.send_bytes(_STDIN + data[start : start + _PIECE])

    async def exit_code(self) -> int:
        """Its exit code. A connection that ended without a status says nothing of the process."""
        if self._status is None:
            raise RuntimeUnavailableError("The connection to the command broke off.")
        if self._status.get("status") == "Success":
            return 0
        for cause in (self._status.get("details") or {}).get("causes") or []:
            if cause.get("reason") == "ExitCode":
                return int(cause["message"])
        raise RuntimeUnavailableError(f"The cluster lost the command: {message_of(self._status)}")

    def _check_end(self, message: aiohttp.WSMessage) -> None:
        if message.type is aiohttp.WSMsgType.ERROR or self._status is None:
            raise RuntimeUnavailableError("The connection to the command broke off.")


@asynccontextmanager
async def open_exec(cluster: Cluster, pod: str, container: str) -> AsyncIterator[PodChannel]:
    """Run the guest program in a running container."""
    *options, loader = PROGRAM
    opening = cluster.exec(pod, container, [_PYTHON, *options, _LIMITS + loader])
    with faults():
        try:
            connection = await opening.__aenter__()
        except RefusedError as error:
            if error.status == NOT_FOUND:
                raise ContainerMissingError("The dev server's pod has just gone.") from error
            if error.status == _BAD_REQUEST:
                raise NotRunningError("The dev server has just ended.") from error
            raise
        except TimeoutError as error:  # the API server has just answered: it waits for the kubelet, too
            raise RuntimeUnavailableError("The dev server's node doesn't answer.") from error
    try:
        yield PodChannel(connection)
    finally:
        await opening.__aexit__(None, None, None)
