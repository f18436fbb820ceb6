"""One GET to the public internet: checked at every hop, bounded in time and size, with nothing of ours in it.

Each hop's host is looked up once; the request goes to one of the addresses that were checked, while the `Host` header
and the certificate's name stay the host's own. No cookies, no credentials, no proxy of this machine's environment.
"""

import asyncio
import ssl
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Final

import httpx

from activities.addresses import Endpoint, HostRefusedError, PublicResolver, Resolver
from workflows.contracts.errors import UnavailableError

MAX_BODY: Final = 2 * 1024 * 1024
MAX_REDIRECTS: Final = 5
TIMEOUT_S: Final = 20.0

_CONNECT_TIMEOUT_S: Final = 5.0
_MAX_URL: Final = 2048
_ADDRESSES_TRIED: Final = 3
_PORTS: Final = {"http": 80, "https": 443}
_HEADERS: Final = {
    "User-Agent": "studio-agent/1.0",
    "Accept": "text/html, text/*;q=0.9, application/json;q=0.9, application/xml;q=0.9, */*;q=0.1",
    "Accept-Encoding": "gzip",
}
_REDIRECTS: Final = {
    HTTPStatus.MOVED_PERMANENTLY,
    HTTPStatus.FOUND,
    HTTPStatus.SEE_OTHER,
    HTTPStatus.TEMPORARY_REDIRECT,
    HTTPStatus.PERMANENT_REDIRECT,
}
_GZIP_OR_ZLIB: Final = 47  # zlib's word for "whichever of the two its header says"


class PageError(Exception):
    """The page can't be had; the message says why, for whoever asked for it."""


@dataclass(frozen=True)
class WebPage:
    """What came. `content_type` as sent, "" without one; `body` decompressed, of at most the bytes asked for.

    `cut`: there is more than `body` holds. `size`: bytes of the whole as its sender says, None when it doesn't.
    """

    url: str
    status: int
    content_type: str
    body: bytes
    cut: bool
    size: int | None


class WebPages:
    """Gets pages from public hosts, as `resolver` tells them."""

    def __init__(self, resolver: Resolver | None = None) -> None:
        self._resolver = resolver or PublicResolver()

    async def get(self, url: str, *, max_bytes: int = MAX_BODY) -> WebPage:
        """The page behind the address and at most five redirects. Raises `PageError`."""
        target = _parse(url)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                for _ in range(MAX_REDIRECTS + 1):
                    answer = await self._visit(target, max_bytes)
                    if isinstance(answer, WebPage):
                        return answer
                    target = answer
        except TimeoutError:
            raise PageError(f"It didn't arrive within {TIMEOUT_S:g} seconds.") from None
        raise PageError(f"It redirects more than {MAX_REDIRECTS} times.")

    async def _visit(self, target: httpx.URL, max_bytes: int) -> WebPage | httpx.URL:
        """The page at the address, or where it sends us."""
        async with self._request(target) as response:
            location = response.headers.get("location")
            if response.status_code in _REDIRECTS and location is not None:
                return _parse_redirect(target, location)
            return await _read(response, target, max_bytes)

    @asynccontextmanager
    async def _request(self, target: httpx.URL) -> AsyncIterator[httpx.Response]:
        endpoints = await self._endpoints(target)
        verify = await asyncio.to_thread(_authorities)
        timeout = httpx.Timeout(TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
        async with httpx.AsyncClient(verify=verify, trust_env=False, follow_redirects=False, timeout=timeout) as client:
            response = await _send(client, target, endpoints[:_ADDRESSES_TRIED])
            try:
                yield response
            except httpx.HTTPError as error:
                raise PageError(f"{target.host} broke off its answer: {_reason(error)}.") from error
            finally:
                await response.aclose()

    async def _endpoints(self, target: httpx.URL) -> list[Endpoint]:
        try:
            return await self._resolver.resolve(target.raw_host.decode().strip("[]"), _PORTS[target.scheme])
        except HostRefusedError as error:
            raise PageError(f"This address isn't fetched: {error.detail}.") from error
        except UnavailableError as error:
            raise PageError(error.detail) from error


async def _send(client: httpx.AsyncClient, target: httpx.URL, endpoints: list[Endpoint]) -> httpx.Response:
    """The answer's head, from the first of the addresses that takes a connection."""
    host = target.raw_host.decode()
    refusal: Exception | None = None
    for endpoint in endpoints:
        request = client.build_request(
            "GET",
            target.copy_with(host=endpoint.address, port=endpoint.port),
            headers={**_HEADERS, "Host": host},
            extensions={"sni_hostname": host.strip("[]")},
        )
        try:
            return await client.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            refusal = error
        except httpx.HTTPError as error:
            raise PageError(f"{target.host} doesn't answer as it should: {_reason(error)}.") from error
    raise PageError(f"{target.host} can't be connected to: {_reason(refusal)}.") from refusal


def _reason(error: Exception | None) -> str:
    return (str(error) or type(error).__name__)[:200]


@cache
def _authorities() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


# --- addresses --------------------------------------------------------------------------------------------------


def _parse(url: str) -> httpx.URL:
    if len(url) > _MAX_URL:
        raise PageError(f"The address is longer than {_MAX_URL} characters.")
    try:
        target = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise PageError(f"This is no address: {_reason(error)}.") from error
    if target.scheme not in _PORTS:
        raise PageError("The address must begin with http:// or https://.")
    if not target.host:
        raise PageError("The address has no host.")
    if target.userinfo:
        raise PageError("The address must not hold a user name or password.")
    if target.port not in {None, _PORTS[target.scheme]}:
        raise PageError("Only the standard ports are asked: 80 for http, 443 for https.")
    return target.copy_with(fragment=None)


def _parse_redirect(target: httpx.URL, location: str) -> httpx.URL:
    try:
        return _parse(str(target.join(location)))
    except (httpx.InvalidURL, ValueError) as error:
        raise PageError("It redirects to something that is no address.") from error
    except PageError as error:
        raise PageError(f"It redirects to {location[:200]!r}, which isn't followed. {error}") from error


# --- bodies -----------------------------------------------------------------------------------------------------


async def _read(response: httpx.Response, target: httpx.URL, max_bytes: int) -> WebPage:
    body, cut = await _body(response, max_bytes)
    encoded = "content-encoding" in response.headers
    length = response.headers.get("content-length", "")
    return WebPage(
        url=str(target),
        status=response.status_code,
        content_type=response.headers.get("content-type", "")[:200],
        body=body,
        cut=cut,
        size=int(length) if not encoded and length.isascii() and length.isdigit() else None,
    )


async def _body(response: httpx.Response, max_bytes: int) -> tuple[bytes, bool]:
    """The body's first bytes, and whether there are more. A small body that unpacks to gigabytes stays small here."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding in {"", "identity"}:
        unpack = None
    elif encoding in {"gzip", "x-gzip", "deflate"}:
        unpack = zlib.decompressobj(_GZIP_OR_ZLIB)
    else:
        raise PageError(f"It comes packed as {encoding[:50]!r}, which wasn't asked for.")
    body = bytearray()
    async for piece in response.aiter_raw():
        try:
            body += piece if unpack is None else unpack.decompress(piece, max_bytes + 1 - len(body))
        except zlib.error as error:
            raise PageError("Its content is packed wrongly.") from error
        if len(body) > max_bytes:
            return bytes(body[:max_bytes]), True
    return bytes(body), False
