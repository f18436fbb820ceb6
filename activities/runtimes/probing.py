"""Whether a server answers HTTP, by the least that can tell."""

import asyncio

_TIMEOUT_S = 2.0
_SERVER_ERROR = 500


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
