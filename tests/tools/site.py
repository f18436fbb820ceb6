"""A small web server on loopback, whose every answer a test writes itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


def answer(body: bytes, kind: str = "text/plain", status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    if kind:
        lines.append(f"Content-Type: {kind}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def moved(location: str) -> bytes:
    return answer(b"", "", "302 Found", f"Location: {location}")


class Site:
    """A server that answers by path, and remembers what it was sent."""

    def __init__(self, answers: dict[str, bytes]) -> None:
        self.answers = answers
        self.requests: list[str] = []
        self.connections = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):  # browsers open some that they don't use
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(head)
            writer.write(self.answers.get(head.split(" ")[1], answer(b"nothing", status="404 Not Found")))
            await writer.drain()
        writer.close()


@asynccontextmanager
async def site(answers: dict[str, bytes]) -> AsyncIterator[Site]:
    served = Site(answers)
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    async with server:
        yield served
