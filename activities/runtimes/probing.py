"""Whether a server answers HTTP, by the least that can tell."""

import asyncio

_TIMEOUT_S = 2.0
_PATIENCE_S = 0.25
_PAUSE_S = 0.01
_SERVER_ERROR = 500


async def answers_soon(host: str, port: int) -> bool:
    """As `answers`, asked again for a moment while nobody listens: a server that comes up is seen at once, and
    without asking the runtime for its address each time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _PATIENCE_S
    while not await answers(host, port):
        if loop.time() >= deadline:
            return False
        await asyncio.sleep(_PAUSE_S)
    return True


async def answers(host: str, port: int) -> bool:
    """Whether `GET /` gets a status below 500 within two seconds. Redirects count as they are, unfollowed."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                request = f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\nAccept: text/html,*/*\r\nConnection: close\r\n\r\n"
                writer.write(request.encode())
                return _is_success(await reader.readline())
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):  # ValueError: a line without an end, so it isn't HTTP
        return False


def _is_success(status_line: bytes) -> bool:
    protocol, _, rest = status_line.partition(b" ")
    code = rest[:3]
    return protocol.startswith(b"HTTP/1.") and code.isdigit() and int(code) < _SERVER_ERROR
