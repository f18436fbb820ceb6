"""The only way out of a browser that shows a user's page: a SOCKS5 server that decides where each connection goes.

The browser has no other network and looks no name up itself, so whatever a page tries (redirects, WebSockets, names
that change their address, frames) ends up here: the preview's own host is let through, every other one only to an
address of the public internet that was checked.
"""

import asyncio
import ipaddress
import socket
from contextlib import suppress
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

from activities.addresses import Endpoint, HostRefusedError, Resolver
from workflows.contracts.errors import UnavailableError

_MAX_CONNECTIONS: Final = 128
_MAX_REFUSALS: Final = 100
_CONNECT_TIMEOUT_S: Final = 5.0
_PIECE: Final = 64 * 1024
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_WEB_PORTS: Final = {80, 443}
_FIRST_FREE_PORT: Final = 1024

_VERSION: Final = 5
_CONNECT: Final = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4
_GRANTED, _NOT_ALLOWED, _UNREACHABLE = 0, 2, 4


class PageGateway:
    """Open as a context; `port` of loopback then takes SOCKS5 connections.

    `preview`: address of the preview as its owner sees it. Plain HTTP is the proxy on this host; HTTPS is ended by
    whatever stands in front of it, found by its name. `refusals`: `host:port` to why it wasn't connected.
    """

    def __init__(self, preview: str, resolver: Resolver) -> None:
        parts = urlsplit(preview)
        self._host = (parts.hostname or "").lower()
        self._port = parts.port or _DEFAULT_PORTS[parts.scheme]
        self._is_here = parts.scheme == "http"
        self._resolver = resolver
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self.port = 0
        self.refusals: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._serving) >= _MAX_CONNECTIONS:
            writer.close()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Whatever a hostile peer sends or cuts off ends its own connection and nothing else.
        with suppress(OSError, EOFError, ValueError, TimeoutError):
            try:
                async with asyncio.timeout(4 * _CONNECT_TIMEOUT_S):
                    host, port = await _asked_for(reader, writer)
                    upstream = await self._connect(host, port, writer)
                if upstream is not None:
                    await _join((reader, writer), upstream)
            finally:
                writer.close()

    async def _connect(
        self, host: str, port: int, writer: asyncio.StreamWriter
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        try:
            endpoints = await self._endpoints(host, port)
        except (HostRefusedError, UnavailableError) as error:
            if len(self.refusals) < _MAX_REFUSALS:
                self.refusals[f"{host}:{port}"] = error.detail
            writer.write(_reply(_NOT_ALLOWED))
            return None
        for endpoint in endpoints[:2]:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    upstream = await asyncio.open_connection(endpoint.address, endpoint.port)
                writer.write(_reply(_GRANTED))
                return upstream
        writer.write(_reply(_UNREACHABLE))
        return None

    async def _endpoints(self, host: str, port: int) -> list[Endpoint]:
        if (host, port) == (self._host, self._port):
            return await self._preview_endpoints()
        if port not in _WEB_PORTS and port < _FIRST_FREE_PORT:
            raise HostRefusedError(f"port {port} is none of the web's")
        return await self._resolver.resolve(host, port)

    async def _preview_endpoints(self) -> list[Endpoint]:
        """The operator's own domain: where it leads may well be a private address."""
        if self._is_here:
            return [Endpoint("127.0.0.1", self._port)]
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise HostRefusedError(f"the preview's host {self._host!r} can't be looked up") from error
        return [Endpoint(str(item[4][0]), self._port) for item in found]


async def _asked_for(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, int]:
    """Host and port of a SOCKS5 request. Raises `ValueError` for what is none."""
    version, methods = await reader.readexactly(2)
    await reader.readexactly(methods)
    if version != _VERSION:
        raise ValueError("not SOCKS5")
    writer.write(bytes((_VERSION, 0)))
    version, command, _, kind = await reader.readexactly(4)
    if (version, command) != (_VERSION, _CONNECT):
        raise ValueError("not a connection that is asked for")
    match kind:
        case _ if kind == _NAME:
            (length,) = await reader.readexactly(1)
            host = (await reader.readexactly(length)).decode("ascii").lower()
        case _ if kind == _IPV4:
            host = str(ipaddress.IPv4Address(await reader.readexactly(4)))
        case _ if kind == _IPV6:
            host = str(ipaddress.IPv6Address(await reader.readexactly(16)))
        case _:
            raise ValueError("no kind of address")
    return host, int.from_bytes(await reader.readexactly(2), "big")


def _reply(code: int) -> bytes:
    return bytes((_VERSION, code, 0, _IPV4, *bytes(6)))


async def _join(
    near: tuple[asyncio.StreamReader, asyncio.StreamWriter], far: tuple[asyncio.StreamReader, asyncio.StreamWriter]
) -> None:
    """Carry bytes both ways until both have ended or one breaks."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_carry(near[0], far[1]))
            group.create_task(_carry(far[0], near[1]))
    finally:
        far[1].close()


async def _carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(_PIECE):
            target.write(data)
            await target.drain()
        target.write_eof()
