"""How the supervisor sees that a part is ready: each check is one cheap attempt, False for "not yet"."""

import asyncio
from collections.abc import Awaitable
from http import HTTPStatus
from pathlib import Path

Connecting = Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]

_TIMEOUT_S = 3.0


async def accepts(port: int) -> bool:
    """Whether something on 127.0.0.1 takes connections at `port`."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def answers_ok(port: int, path: str) -> bool:
    """Whether `GET path` on 127.0.0.1 is answered 200."""
    return await http_status(asyncio.open_connection("127.0.0.1", port), f"localhost:{port}", path) == HTTPStatus.OK


async def http_status(connecting: Connecting, host: str, path: str) -> int | None:
    """Status of one `GET`, None when there is no answer."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await connecting
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                words = (await reader.readline()).split()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else None


def is_noted(path: Path, pid: int) -> bool:
    """Whether the part itself has written its process id into `path`."""
    try:
        return path.read_text().strip() == str(pid)
    except FileNotFoundError:
        return False
