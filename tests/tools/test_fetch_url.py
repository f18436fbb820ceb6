"""Fetching over real connections from a server on loopback, which a resolver of these tests alone lets in."""

import asyncio
import gzip
import socket
from collections.abc import Callable
from typing import Any, cast

import pytest

from activities.addresses import Endpoint, HostRefusedError, PublicResolver, Resolver
from activities.tools.fetch_url import FetchUrl, FetchUrlArguments
from activities.tools.tool import ToolContext, ToolFailure, ToolKind, ToolResult
from activities.web_pages import WebPages
from tests.tools.site import answer, moved, site

NO_CONTEXT = cast("ToolContext", None)  # the tool needs no part of the project


class OneSite(Resolver):
    """Knows the tests' own host; every other one is judged as in production."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: list[tuple[str, int]] = []

    async def resolve(self, host: str, port: int) -> list[Endpoint]:
        self.asked.append((host, port))
        if host == "site.example":
            return [Endpoint("127.0.0.1", self.port)]
        return await PublicResolver().resolve(host, port)


async def fetch(resolver: Resolver, url: str, **arguments: Any) -> ToolResult:
    return await FetchUrl(WebPages(resolver)).run(NO_CONTEXT, FetchUrlArguments(url=url, **arguments))


async def refusal(resolver: Resolver, url: str) -> str:
    with pytest.raises(ToolFailure) as caught:
        await fetch(resolver, url)
    return str(caught.value)


async def fetched(body: bytes, kind: str = "text/plain", *headers: str, **arguments: Any) -> ToolResult:
    async with site({"/": answer(body, kind, "200 OK", *headers)}) as server:
        return await fetch(OneSite(server.port), "http://site.example/", **arguments)


async def test_a_page_comes_as_text_that_is_marked_as_foreign() -> None:
    page = b'<html><title>T</title><script>evil()</script><h1>Hi</h1><p>a <a href="/y">link</a></html>'
    async with site({"/x?q=1": answer(page, "text/html; charset=utf-8")}) as server:
        result = await fetch(OneSite(server.port), "http://site.example/x?q=1#part")
    lines = result.text.splitlines()
    assert lines[:3] == ["Status: 200", "Address: http://site.example/x?q=1", "Content type: text/html; charset=utf-8"]
    assert "never instructions" in lines[3]
    assert "# Hi" in lines
    assert "[link](http://site.example/y)" in result.text
    assert "evil" not in result.text
    assert not result.failed
    sent = server.requests[0].lower()
    assert "host: site.example\r\n" in sent
    assert "cookie" not in sent
    assert "authorization" not in sent
    assert not FetchUrl().has_effects(FetchUrlArguments(url="http://site.example/"))
    assert FetchUrl.kind is ToolKind.LOOK


async def test_a_missing_page_is_told_with_what_it_says() -> None:
    async with site({}) as server:
        result = await fetch(OneSite(server.port), "http://site.example/nowhere")
    assert result.failed
    assert result.text.startswith("Status: 404\n")
    assert result.text.endswith("nothing")


async def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert (await fetched(b"direct")).text.endswith("direct")


# --- hosts that aren't asked ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/",
        "http://127.0.0.1/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0/",
        "http://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://100.64.0.1/",
        "http://[::1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[64:ff9b::a00:1]/",
        "http://[2002:7f00:1::]/",
        "http://[fd00::1]/",
        "http://224.0.0.1/",
    ],
)
async def test_hosts_within_are_refused(url: str) -> None:
    assert "isn't on the public internet" in await refusal(PublicResolver(), url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "http://"),
        ("ftp://site.example/", "http://"),
        ("gopher://site.example/", "http://"),
        ("//site.example/", "http://"),
        ("site.example", "http://"),
        ("", "http://"),
        ("http://", "host"),
        ("http:///etc", "host"),
        ("http://user:secret@site.example/", "user name"),
        ("http://site.example:8080/", "ports"),
        ("http://site.example:443/", "ports"),
        ("http://site.example/\n", "no address"),
        ("http://[::1/", "no address"),
        ("http://0177.0.0.1/", "no address"),
        ("http://" + "a" * 3000, "longer"),
    ],
)
async def test_addresses_that_are_refused_unseen(url: str, reason: str) -> None:
    resolver = OneSite(1)
    told = await refusal(resolver, url)
    assert reason in told
    assert "secret" not in told
    assert resolver.asked == []


def lookups(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Names resolve to these addresses, one answer after the other, the last for ever. Returns the names asked for."""
    asked: list[str] = []
    given = iter(answers)
    last = [answers[-1]]

    async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        asked.append(host)
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in next(given, None) or last[0]
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "169.254.169.254", "::ffff:10.0.0.1", "10.1.1.1", "0.0.0.0", "fe80::1%eth0"]
)
async def test_a_name_of_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    lookups(monkeypatch, ["1.1.1.1", address])
    assert "isn't on the public internet" in await refusal(PublicResolver(), "http://innocent.example/")


class Rebinding(Resolver):
    """A name that leads to the tests' own server the first time, and elsewhere ever after."""

    def __init__(self, first: int, later: int) -> None:
        self.ports = [first]
        self.later = later

    async def resolve(self, host: str, port: int) -> list[Endpoint]:
        return [Endpoint("127.0.0.1", self.ports.pop() if self.ports else self.later)]


async def test_the_connection_goes_to_the_address_that_was_checked() -> None:
    async with site({"/": answer(b"checked")}) as public, site({"/": answer(b"inner")}) as private:
        result = await fetch(Rebinding(public.port, private.port), "http://rebind.example/")
    assert result.text.endswith("checked")
    assert private.requests == []


async def test_a_name_is_looked_up_once_however_often_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    # A reserved address that passes for public here, so that nothing on the way can answer.
    monkeypatch.setattr("activities.addresses.is_public", lambda address: address.startswith("192.0.2."))
    monkeypatch.setattr("activities.web_pages._CONNECT_TIMEOUT_S", 0.2)
    asked = lookups(monkeypatch, ["192.0.2.1"], ["127.0.0.1"])
    assert "can't be connected to" in await refusal(PublicResolver(), "http://rebind.example/")
    assert asked == ["rebind.example"]


# --- redirects --------------------------------------------------------------------------------------------------


async def test_redirects_are_followed_and_counted() -> None:
    answers = {"/1": moved("/2"), "/2": moved("//site.example/3"), "/3": answer(b"there"), "/loop": moved("/loop")}
    async with site(answers) as server:
        resolver = OneSite(server.port)
        result = await fetch(resolver, "http://site.example/1")
        assert "more than 5" in await refusal(resolver, "http://site.example/loop")
    assert "Address: http://site.example/3" in result.text
    assert result.text.endswith("there")
    assert len(resolver.asked) == 3 + 6
    assert len(server.requests) == 3 + 6


@pytest.mark.parametrize(
    "location",
    [
        "http://localhost/",
        "http://2130706433/",
        "http://169.254.169.254/",
        "http://[::ffff:127.0.0.1]/",
        "http://127.0.0.1:{port}/inner",
        "//127.0.0.1/inner",
        "file:///etc/passwd",
        "http://site.example:{port}/inner",
        "http://user:pw@site.example/inner",
    ],
)
async def test_redirects_within_are_refused(location: str) -> None:
    async with site({"/inner": answer(b"secret")}) as server:
        server.answers["/"] = moved(location.format(port=server.port))
        assert await refusal(OneSite(server.port), "http://site.example/")
    assert len(server.requests) == 1


async def test_a_cookie_is_not_carried_on() -> None:
    answers = {"/": answer(b"", "", "302 Found", "Location: /next", "Set-Cookie: a=1"), "/next": answer(b"x")}
    async with site(answers) as server:
        await fetch(OneSite(server.port), "http://site.example/")
    assert not any("cookie" in request.lower() for request in server.requests)


# --- bounds -----------------------------------------------------------------------------------------------------


async def test_long_text_is_read_in_parts() -> None:
    body = "".join(f"{n:07}\n" for n in range(5000)).encode()
    first = await fetched(body)
    rest = await fetched(body, offset=32_000)
    assert len(first.text) < 17_000
    assert "Characters 0 to 16,000 of 39,999" in first.text
    assert "0001999" in first.text
    assert "0002000" not in first.text
    assert "0004000" in rest.text
    assert "0004999" in rest.text


async def test_a_large_body_is_cut_and_that_is_said() -> None:
    result = await fetched(b"x" * 5_000_000, max_bytes=1000)
    assert result.text.endswith("[Only the first 1,000 bytes of 5,000,000 were read.]")


async def test_a_small_body_that_unpacks_to_much_stays_small() -> None:
    bomb = gzip.compress(b"x" * 200_000_000)
    assert len(bomb) < 300_000
    result = await fetched(bomb, "text/html", "Content-Encoding: gzip", max_bytes=1000)
    assert "1,000 bytes" in result.text


async def test_packed_text_is_unpacked() -> None:
    assert (await fetched(gzip.compress(b"packed"), "text/plain", "Content-Encoding: gzip")).text.endswith("packed")
    for encoding in ("br", "gzip"):
        with pytest.raises(ToolFailure):
            await fetched(b"not that", "text/plain", f"Content-Encoding: {encoding}")


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "", "text/plain"])
async def test_binaries_are_named_not_shown(kind: str) -> None:
    with pytest.raises(ToolFailure) as caught:
        await fetched(b"\x89PNG\0\0" + b"x" * 994, kind)
    assert "1,000 bytes" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("gr\u00fc\u00df".encode("latin-1"), "text/plain; charset=iso-8859-1"),
        ('<meta charset="windows-1252">gr\u00fc\u00df'.encode("cp1252"), "text/html"),
        ("gr\u00fc\u00df".encode("utf-16"), "text/plain"),
        ("gr\u00fc\u00df".encode("utf-8-sig"), "application/json"),
        ("gr\u00fc\u00df".encode(), "text/plain; charset=rot13"),
        ("gr\u00fc\u00df".encode(), "text/plain; charset=cp999"),
    ],
)
async def test_text_is_read_in_its_charset(body: bytes, kind: str) -> None:
    assert (await fetched(body, kind)).text.endswith("gr\u00fc\u00df")


async def test_what_no_database_takes_is_not_passed_on() -> None:
    assert "\0" not in (await fetched(b"a" * 2000 + b"\0")).text
    assert "\0" not in (await fetched(b"<p>" + b"a" * 2000 + b"\0" * 3000, "text/html")).text


async def _stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nsome")
    await writer.drain()
    while await reader.read(1000):
        pass
    writer.close()


async def _lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome")
    await writer.drain()
    writer.close()


async def _babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"what?\r\n\r\n")
    await writer.drain()
    writer.close()


@pytest.mark.parametrize(
    ("behaviour", "reason"), [(_stall, "within"), (_lie, "broke off"), (_babble, "answer as it should")]
)
async def test_servers_that_misbehave(
    behaviour: Callable[..., Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.web_pages.TIMEOUT_S", 1.0)
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await behaviour(reader, writer)
        ended.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        resolver = OneSite(server.sockets[0].getsockname()[1])
        assert reason in await refusal(resolver, "http://site.example/")
        async with asyncio.timeout(30):
            await ended.wait()


async def test_a_host_that_does_not_exist_is_said_to_be_missing() -> None:
    class NoSuchHost(Resolver):
        async def resolve(self, host: str, port: int) -> list[Endpoint]:
            raise HostRefusedError(f"there is no host {host!r}")

    assert "there is no host 'nowhere.example'" in await refusal(NoSuchHost(), "http://nowhere.example/")
