"""HTTP to a model's server: one pool of connections, bounded waits, and answers that can't grow without end."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from httpx_sse import EventSource, ServerSentEvent

from activities.errors import ModelUnavailableError

_OK = 200
_CONNECTIONS = 1000
_IDLE_S = 4.0
"""Less than the 5 s after which uvicorn, and with it LiteLLM's proxy, closes an idle connection."""
_HELD_LIMIT = 4 * 1024 * 1024
"""Bytes of one event: more is no event."""
_DRAIN_S = 0.25
_PUT_OFF_EACH = 0.05
"""Share of the time for silence after which its end is put off again."""
_PIECE = 256 * 1024
_BODY_LIMIT = 4 * 1024 * 1024


@dataclass(frozen=True)
class Patience:
    """How long a server may be silent, in seconds."""

    connect_s: float = 5.0
    first_event_s: float = 120.0
    between_events_s: float = 60.0
    short_answer_s: float = 15.0


def make_client(base_url: str, patience: Patience) -> httpx.AsyncClient:
    """A client for hundreds of streams at once. It never tries again by itself.

    aiohttp's parser under httpx's client: a token costs a third of the time that httpcore and h11 take for it, and
    tokens are most of what a worker does.
    """
    limits = httpx.Limits(max_connections=_CONNECTIONS, keepalive_expiry=_IDLE_S)
    return httpx.AsyncClient(
        base_url=base_url,
        timeout=httpx.Timeout(patience.short_answer_s, connect=patience.connect_s, pool=patience.connect_s),
        transport=AiohttpTransport(limits=limits),
        follow_redirects=False,
    )


async def ask(
    client: httpx.AsyncClient, method: str, path: str, *, key: str | None, body: Mapping[str, Any] | None = None
) -> tuple[int, Any, Mapping[str, str]]:
    """A short question: status, the answer's JSON (None when it isn't JSON), headers in lower case.

    Raises `ModelUnavailableError` when there is no answer, or none that is sane.
    """
    request = client.build_request(method, path, json=body, headers=_authorization(key))
    limit = client.timeout.read
    async with _opened(client, request, limit) as response:
        return response.status_code, await read_json(response, limit), dict(response.headers)


@asynccontextmanager
async def open_stream(
    client: httpx.AsyncClient, path: str, *, key: str | None, body: Mapping[str, Any], patience: Patience
) -> AsyncIterator[httpx.Response]:
    """Post `body`; the answer's head, its body to be read by `hear`, `read_events` or `read_json`."""
    # Silence is bounded by those who read; a timer of the transport's own for each piece costs a tenth of a stream.
    timeout = httpx.Timeout(None, connect=patience.connect_s, pool=patience.connect_s)
    sent = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    headers = _authorization(key) | {
        "Accept": "text/event-stream",
        "Cache-Control": "no-store",
        "Content-Type": "application/json",
        "Content-Length": str(len(sent)),
    }
    request = client.build_request("POST", path, content=_pieces(sent), headers=headers, timeout=timeout)
    async with _opened(client, request, patience.first_event_s) as response:
        yield response


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    """A long conversation in turns, so that writing it holds nothing else up."""
    for start in range(0, len(body), _PIECE):
        yield body[start : start + _PIECE]


async def read_json(response: httpx.Response, limit_s: float | None) -> Any:  # noqa: ANN401 -- whatever was sent
    """The JSON of a whole answer, None when it isn't any. Raises `ModelUnavailableError`."""
    parts, size = [], 0
    with _told_of_faults():
        async with asyncio.timeout(limit_s):
            async for part in response.aiter_bytes():
                size += len(part)
                if size > _BODY_LIMIT:
                    raise ModelUnavailableError(f"The model's server answers with more than {_BODY_LIMIT} bytes.")
                parts.append(part)
    try:
        return json.loads(b"".join(parts))
    except ValueError:
        return None


def is_stream(response: httpx.Response) -> bool:
    """Whether what was asked for as a stream comes as one."""
    return response.status_code == _OK and response.headers.get("content-type", "").startswith("text/event-stream")


def read_chunk(data: str) -> dict[str, Any]:
    """The JSON of an event. Raises `ModelUnavailableError` for what isn't a part of an answer."""
    try:
        chunk = json.loads(data)
    except ValueError:
        chunk = None
    if not isinstance(chunk, dict):
        raise ModelUnavailableError("The model's server sends something that isn't an answer.")
    return chunk


async def drain(events: AsyncIterator[ServerSentEvent]) -> None:
    """Read what follows the last event that matters, so that the connection can be used again. Bounded and silent."""
    with suppress(TimeoutError, ModelUnavailableError), _told_of_faults():
        async with asyncio.timeout(_DRAIN_S):
            async for _ in events:
                continue


async def hear(response: httpx.Response, patience: Patience, take: Callable[[str], bool]) -> None:
    """Give the data of each event to `take` as it comes, until that says that there is no more to come.

    Raises `ModelUnavailableError` when the stream breaks off before, or is silent too long. For hundreds of streams at
    once: a timer for each event would be a sixth of what an event costs, so its end is put off now and then.
    """
    held = _hold(response)
    now, put_off = asyncio.get_running_loop().time, 0.0
    with _told_of_faults():
        async with (
            asyncio.timeout(patience.first_event_s) as silence,
            aclosing(EventSource(response).aiter_sse()) as events,
        ):
            async for event in events:
                held.size = 0
                if take(event.data):
                    await drain(events)
                    return
                if now() >= put_off:
                    silence.reschedule(now() + patience.between_events_s)
                    put_off = now() + _PUT_OFF_EACH * patience.between_events_s
    raise ModelUnavailableError("The model's answer broke off in the middle.")


async def read_events(response: httpx.Response, patience: Patience) -> AsyncGenerator[ServerSentEvent, None]:
    """The events of a stream as they come. Raises `ModelUnavailableError` when it breaks off, or is silent too long."""
    held = _hold(response)
    limit = patience.first_event_s
    with _told_of_faults():
        async with aclosing(EventSource(response).aiter_sse()) as events:
            while True:
                async with asyncio.timeout(limit):
                    event = await anext(events, None)
                if event is None:
                    return
                held.size = 0
                limit = patience.between_events_s
                yield event


def _hold(response: httpx.Response) -> "_Held":
    response.stream = held = _Held(response.stream)
    return held


class _Held(httpx.AsyncByteStream):
    """A body of which only so much may come before the reader says, by `size = 0`, that it has made sense of it."""

    def __init__(self, inner: httpx.AsyncByteStream | httpx.SyncByteStream) -> None:
        if not isinstance(inner, httpx.AsyncByteStream):
            raise TypeError("an asynchronous client has asynchronous bodies")
        self._inner = inner
        self.size = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for data in self._inner:
            self.size += len(data)
            if self.size > _HELD_LIMIT:
                raise ModelUnavailableError("The model's server sends something that isn't a stream of events.")
            yield data

    async def aclose(self) -> None:
        await self._inner.aclose()


@asynccontextmanager
async def _opened(
    client: httpx.AsyncClient, request: httpx.Request, limit_s: float | None = None
) -> AsyncIterator[httpx.Response]:
    with _told_of_faults():
        async with asyncio.timeout(limit_s):
            response = await client.send(request, stream=True)
    try:
        yield response
    finally:
        await response.aclose()


@contextmanager
def _told_of_faults() -> Iterator[None]:
    """Whatever goes wrong on the way becomes a fault that names no address: it is shown to users."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise ModelUnavailableError("The model's server can't be reached.") from error
    except (TimeoutError, httpx.TimeoutException) as error:
        raise ModelUnavailableError("The model's server was silent for too long.") from error
    except (httpx.HTTPError, httpx.StreamError, aiohttp.ClientError) as error:
        raise ModelUnavailableError("The connection to the model's server broke off.") from error


def _authorization(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}
