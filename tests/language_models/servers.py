"""Model servers for these tests: the scripted one, and ones that misbehave in one way on the wire."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from activities.ports import LanguageModel, ModelEnd, ModelMessage, ModelRequest
from workers.scripted_model.app import SCRIPTED

Reply = Callable[[dict[str, Any], asyncio.StreamWriter], Awaitable[None]]

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
STOP = {"choices": [{"delta": {}, "finish_reason": "stop"}]}


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[str]:
    """The application on uvicorn; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with asyncio.timeout(10):
                while not server.started:  # noqa: ASYNC110 -- uvicorn tells no other way
                    await asyncio.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


class WireServer:
    """Answers each request with the bytes that `reply` writes, and remembers what it was asked."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self.asked: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.connections = 0

    @asynccontextmanager
    async def up(self) -> AsyncIterator[str]:
        tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(
            lambda *streams: tasks.add(asyncio.create_task(self._serve(*streams))), "127.0.0.1", 0
        )
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with closing(writer), suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                _, marked, rest = head.partition("content-length: ")
                body = await reader.readexactly(int(rest.split("\r\n")[0])) if marked else b"{}"
                self.paths.append(head.split(" ")[1])
                self.asked.append(json.loads(body))
                await self._reply(self.asked[-1], writer)
                await writer.drain()


def event(data: Any) -> bytes:
    """One chunk of the body with one event."""
    text = f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()
    return f"{len(text):x}\r\n".encode() + text + b"\r\n"


def events(*data: Any) -> Reply:
    """Says these events, the last of them the end of the body."""

    async def reply(_: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"".join(map(event, data)) + LAST_CHUNK)

    return reply


def answering(status: int, body: Any, headers: str = "") -> Reply:
    """Says this JSON."""

    async def reply(_: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        text = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n{headers}\r\n"
        writer.write(head.encode() + text)

    return reply


def request(text: str = "hello", *, model: str = SCRIPTED, **fields: Any) -> ModelRequest:
    return ModelRequest(model=model, messages=(ModelMessage("user", text),), **fields)


def script(*steps: dict[str, Any], **fields: Any) -> str:
    """A user's message that the scripted model plays."""
    return f"<script>{json.dumps({'steps': steps, **fields})}</script>"


async def listen(model: LanguageModel, asked: ModelRequest) -> tuple[str, ModelEnd]:
    """The whole answer."""
    pieces: list[str] = []
    end = await model.answer(asked, pieces.append)
    assert all(pieces)
    return "".join(pieces), end
