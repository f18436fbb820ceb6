"""The browser's only way out, spoken to as a hostile page's browser might."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from activities.addresses import Endpoint, HostRefusedError, Resolver
from activities.page_gateway import PageGateway
from tests.tools.site import Site, answer, site

GRANTED, NOT_ALLOWED, UNREACHABLE = 0, 2, 4


class Recording(Resolver):
    """Lets one host through to a port of loopback, and remembers what it was asked."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: list[tuple[str, int]] = []

    async def resolve(self, host: str, port: int) -> list[Endpoint]:
        self.asked.append((host, port))
        if host != "outside.example":
            raise HostRefusedError(f"{host!r} isn't on the public internet")
        return [Endpoint("127.0.0.1", self.port)]


@pytest.fixture
async def server() -> AsyncIterator[Site]:
    async with site({"/": answer(b"there")}) as served:
        yield served


def request(host: str, port: int) -> bytes:
    return b"\x05\x01\x00\x03" + bytes([len(host)]) + host.encode() + port.to_bytes(2, "big")


async def exchange(gateway: PageGateway, *pieces: bytes) -> bytes:
    """All that comes back, until the gateway closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    for piece in pieces:
        writer.write(piece)
    writer.write_eof()
    try:
        async with asyncio.timeout(30):
            return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


async def outcome(gateway: PageGateway, host: str, port: int) -> tuple[int, bytes]:
    """The code of the reply, and what an HTTP request then got."""
    got = await exchange(gateway, b"\x05\x01\x00", request(host, port), b"GET / HTTP/1.1\r\n\r\n")
    assert got[:2] == b"\x05\x00"
    return got[3], got[12:]


async def test_only_the_preview_and_the_public_internet_are_reached(server: Site) -> None:
    resolver = Recording(server.port)
    async with PageGateway(f"http://user1-project2.localhost:{server.port}", resolver) as gateway:
        for host, port in (("user1-project2.localhost", server.port), ("outside.example", 443)):
            code, body = await outcome(gateway, host, port)
            assert (code, body[-5:]) == (GRANTED, b"there")
        for host, port in (
            ("user1-project2.localhost", server.port - 1),  # another port of the preview's host
            ("user9-project2.localhost", server.port),
            ("127.0.0.1", server.port),
            ("outside.example", 25),
        ):
            assert await outcome(gateway, host, port) == (NOT_ALLOWED, b"")
            assert f"{host}:{port}" in gateway.refusals
        numeric = await exchange(gateway, b"\x05\x01\x00", b"\x05\x01\x00\x01\x7f\x00\x00\x01\x1f\x90")
        assert numeric[3] == NOT_ALLOWED
    assert ("outside.example", 25) not in resolver.asked
    assert ("127.0.0.1", 8080) in resolver.asked
    assert len(server.requests) == 2


async def test_an_address_where_nobody_listens_is_said_to_be_unreachable() -> None:
    async with PageGateway("http://app.localhost:8080", Recording(1)) as gateway:
        assert await outcome(gateway, "outside.example", 80) == (UNREACHABLE, b"")


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00",
        b"GET http://127.0.0.1/ HTTP/1.1\r\n\r\n",
        b"\x05\x01\x00\x05\x02\x00\x03\x01a\x00\x50",
        b"\x05\x01\x00\x05\x01\x00\x07",
        b"\x05\x01\x00\x05\x01\x00\x03\x02\xff\xfe\x00\x50",
        b"\x05\x01\x00\x05\x01\x00\x03\x09short",
    ],
)
async def test_what_is_no_request_is_answered_with_nothing(sent: bytes) -> None:
    resolver = Recording(1)
    async with PageGateway("http://app.localhost:8080", resolver) as gateway:
        assert (await exchange(gateway, sent))[2:] == b""
    assert resolver.asked == []


async def test_it_closes_while_connections_are_open(server: Site) -> None:
    async with PageGateway("http://app.localhost:8080", Recording(server.port)) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"\x05\x01\x00" + request("outside.example", 443))
        async with asyncio.timeout(30):
            assert (await reader.readexactly(12))[3] == GRANTED
    async with asyncio.timeout(30):
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
