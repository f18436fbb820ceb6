"""Processes beside a local dev server: its agent starts them on streams that we hand over."""

import asyncio
import contextlib
import json
import os
import socket
from asyncio import StreamReader
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal

from activities.errors import NotRunningError, RuntimeUnavailableError
from activities.ports import ExecOutput

_PIECE: Final = 64 * 1024
_CONNECT_S: Final = 5.0
_EXIT_S: Final = 5.0
_Stream = Literal["stdout", "stderr"]


class LocalChannel:
    """`Channel` over pipes and the agent's word."""

    def __init__(self, agent: socket.socket, stdin: int, streams: dict[_Stream, StreamReader]) -> None:
        self._agent = agent
        self._stdin = stdin
        self._streams = streams
        self._reads: dict[_Stream, asyncio.Task[bytes]] = {}

    async def read(self) -> ExecOutput | None:
        """The next piece of output; None at the end of both streams."""
        while self._streams:
            for name, reader in self._streams.items():
                if name not in self._reads:
                    self._reads[name] = asyncio.create_task(reader.read(_PIECE))
            done, _ = await asyncio.wait(self._reads.values(), return_when=asyncio.FIRST_COMPLETED)
            name = next(name for name, task in self._reads.items() if task in done)
            data = self._reads.pop(name).result()
            if data:
                return ExecOutput(name, data)
            del self._streams[name]
        return None

    async def write(self, data: bytes) -> None:
        """To its standard input; one that has closed it takes no more."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._stdin, view) :]
            except BlockingIOError:
                await _writable(self._stdin)
            except BrokenPipeError:
                return

    async def exit_code(self) -> int:
        """Its exit code, from the agent."""
        try:
            async with asyncio.timeout(_EXIT_S):
                answer = await asyncio.get_running_loop().sock_recv(self._agent, _PIECE)
            return int(json.loads(answer)["exit_code"])
        except (OSError, TimeoutError, ValueError, KeyError, TypeError):
            raise RuntimeUnavailableError("The dev server ended, and the command with it.") from None

    def abandon(self) -> None:
        """Let go of reads under way."""
        for task in self._reads.values():
            task.cancel()


async def _writable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(descriptor)


async def _sent(box: Path, argv: list[str], descriptors: list[int]) -> socket.socket:
    """The agent's answer will come on this socket. A cancellation waits for the thread, which holds the descriptors:
    closed under it, they could be other files' by the time that it sends them.
    """
    sending = asyncio.create_task(asyncio.to_thread(send, box, {"op": "run", "argv": argv}, descriptors))
    try:
        return await asyncio.shield(sending)
    except asyncio.CancelledError:
        await asyncio.wait((sending,))
        if sending.exception() is None:
            sending.result().close()
        raise


@asynccontextmanager
async def open_process(box: Path, argv: list[str], owner: tuple[int, int]) -> AsyncIterator[LocalChannel]:
    """Have the agent behind `box` run a program."""
    ends: dict[str, tuple[int, int]] = {name: os.pipe() for name in ("stdin", "stdout", "stderr")}
    theirs = [ends["stdin"][0], ends["stdout"][1], ends["stderr"][1]]
    try:
        for descriptor in theirs if os.geteuid() == 0 else ():
            os.fchown(descriptor, *owner)  # or /dev/stdout couldn't be opened in there
        agent = await _sent(box, argv, theirs)
    except BaseException:
        for reader, _ in (ends["stdout"], ends["stderr"]):
            os.close(reader)
        os.close(ends["stdin"][1])
        raise
    finally:
        for descriptor in theirs:
            os.close(descriptor)
    stdin = ends["stdin"][1]
    os.set_blocking(stdin, False)
    transports = []
    streams: dict[_Stream, StreamReader] = {}
    names: tuple[_Stream, _Stream] = ("stdout", "stderr")
    for name in names:
        transport, streams[name] = await _reader(ends[name][0])
        transports.append(transport)
    channel = LocalChannel(agent, stdin, streams)
    try:
        yield channel
    finally:
        channel.abandon()
        os.close(stdin)
        for transport in transports:
            transport.close()
        agent.close()


async def _reader(descriptor: int) -> tuple[asyncio.ReadTransport, StreamReader]:
    reader = StreamReader(limit=_PIECE)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
    )
    return transport, reader


def send(box: Path, request: dict[str, Any], descriptors: list[int]) -> socket.socket:
    """Ask the agent; blocking, with a bound. The path may be longer than a socket's address: it goes by descriptor.

    Raises `NotRunningError` when nobody listens, `RuntimeUnavailableError` when somebody does and is too busy: a
    socket with a bound on its waits is refused at once (EAGAIN) where more are waiting than the agent lets wait.
    """
    folder = os.open(box, os.O_RDONLY | os.O_DIRECTORY)
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    agent.settimeout(_CONNECT_S)
    try:
        agent.connect(f"/proc/self/fd/{folder}/socket")
        socket.send_fds(agent, [json.dumps(request).encode()], descriptors)
    except (ConnectionError, FileNotFoundError) as error:
        agent.close()
        raise NotRunningError("This project's dev server doesn't run; start it first.") from error
    except OSError as error:
        agent.close()
        raise RuntimeUnavailableError("The dev server's agent doesn't answer; try again in a moment.") from error
    finally:
        os.close(folder)
    agent.settimeout(0)
    return agent


async def ask_to_stop(box: Path, grace_s: float) -> None:
    """TERM to the server, KILL after the grace; returns when the agent was told."""
    with contextlib.suppress(NotRunningError):
        (await asyncio.to_thread(send, box, {"op": "stop", "grace_s": grace_s}, [])).close()
