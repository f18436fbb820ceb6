"""Processes in a container and its log, over the engine's streams."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Literal

import aiohttp
from aiodocker import Docker
from aiodocker.exceptions import DockerError
from aiodocker.execs import Exec
from aiodocker.stream import Stream

from activities.errors import RuntimeUnavailableError
from activities.ports import ExecOutput
from activities.runtimes.docker_faults import faults
from activities.runtimes.guest import PROGRAM

_STDERR: Final = 2
_HEADER: Final = 8
_PIECE: Final = 64 * 1024
_PYTHON: Final = "/usr/bin/python3"  # the image's own, whatever the project puts on PATH
_EXIT_POLLS: Final = 100
_EXIT_POLL_S: Final = 0.02


class DockerChannel:
    """`Channel` over an exec."""

    def __init__(self, run: Exec, stream: Stream) -> None:
        self._run = run
        self._stream = stream

    async def read(self) -> ExecOutput | None:
        """The next piece of output; None at the end."""
        with faults():
            message = await self._stream.read_out()
        if message is None:
            return None
        stream: Literal["stdout", "stderr"] = "stderr" if message.stream == _STDERR else "stdout"
        return ExecOutput(stream, message.data)

    async def write(self, data: bytes) -> None:
        """To its standard input."""
        with faults():
            await self._stream.write_in(data)

    async def exit_code(self) -> int:
        """Its exit code. A stream also ends cleanly when the engine dies, so this asks, always."""
        with faults():
            for _ in range(_EXIT_POLLS):
                state = await self._run.inspect()
                if not state["Running"] and state["ExitCode"] is not None:
                    return int(state["ExitCode"])
                await asyncio.sleep(_EXIT_POLL_S)
        raise RuntimeUnavailableError("The container engine lost the command.")


@asynccontextmanager
async def open_exec(docker: Docker, container_id: str) -> AsyncIterator[DockerChannel]:
    """Run the guest program in a running container."""
    with faults():
        container = docker.containers.container(container_id)
        run = await container.exec([_PYTHON, *PROGRAM], stdin=True)
        stream = run.start()
        await stream.__aenter__()
    try:
        yield DockerChannel(run, stream)
    finally:
        await stream.close()


async def read_log(docker: Docker, container_id: str, *, tail: int, follow: bool) -> AsyncIterator[bytes]:
    """The container's output, both streams as they came, undecoded."""
    url = f"{docker.docker_host}/{docker.api_version}/containers/{container_id}/logs"
    params = {"stdout": "1", "stderr": "1", "tail": str(tail), "follow": "1" if follow else "0"}
    timeout = aiohttp.ClientTimeout(total=None, connect=5, sock_read=None if follow else 30)
    with faults():
        async with docker.session.get(url, params=params, timeout=timeout) as response:
            if response.status >= 400:  # noqa: PLR2004 -- HTTP's border
                raise DockerError(response.status, (await response.text())[:500])
            while header := await _exactly(response.content, _HEADER):
                left = int.from_bytes(header[4:], "big")
                while left > 0 and (piece := await response.content.read(min(left, _PIECE))):
                    left -= len(piece)
                    yield piece


async def _exactly(content: aiohttp.StreamReader, count: int) -> bytes:
    try:
        return await content.readexactly(count)
    except asyncio.IncompleteReadError:
        return b""
