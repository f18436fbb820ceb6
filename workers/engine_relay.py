"""The engine for those who must not hold its socket, which is root's power over the host: the worker alone has it.

Two sockets in the folder `ENGINE_RELAY`, for who shares it:

    gateway/engine.sock   see this installation's containers (Traefik learns of dev servers there)
    api/engine.sock       that, read their logs, and run commands in them (logs, exec and terminals)

Neither makes, changes or removes anything, nor shows a container of others. Each connection carries one request, which
is written anew from what was understood of it: nothing hides in what was not.
"""

import asyncio
import json
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import structlog

from workers.settings import ServiceSettings
from workflows.contracts.names import LABEL_INSTANCE

_UNIX: Final = "unix://"
_PIECE: Final = 64 * 1024
_MAX_BODY: Final = 256 * 1024
_MAX_ANSWER: Final = 4 * 1024 * 1024
_MAX_CONNECTIONS: Final = 1000
"""A followed log and an open terminal hold one each."""
_REQUEST_S: Final = 10.0
_LOOK_S: Final = 10.0
_LAST_WORDS_S: Final = 30.0
"""A command whose caller has gone is told so by the end of its input; then it has this long."""
_EXEC_FIELDS: Final = ("AttachStdin", "AttachStdout", "AttachStderr", "Tty", "Cmd", "Env", "WorkingDir")

log = structlog.get_logger("engine_relay")


class RefusedError(Exception):
    """The answer is `status` and the message."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Request:
    """What was asked: `path` in its parts without the API's version, `query` with the last value of each name."""

    method: str
    path: tuple[str, ...]
    query: dict[str, str]
    body: bytes


@asynccontextmanager
async def engine_relays(settings: ServiceSettings) -> AsyncIterator[None]:
    """Offer both sockets while this is open; nothing where `ENGINE_RELAY` is unset. Raises `OSError`, `ValueError`."""
    if settings.engine_relay is None:
        yield
        return
    if not settings.docker_host.startswith(_UNIX):
        raise ValueError("ENGINE_RELAY needs a DOCKER_HOST that begins with unix://")
    async with AsyncExitStack() as stack:
        for name, may_run in (("gateway", False), ("api", True)):
            relay = EngineRelay(
                Path(settings.docker_host.removeprefix(_UNIX)),
                instance=settings.instance,
                image=settings.devserver_image,
                may_run=may_run,
            )
            folder = settings.engine_relay / name
            await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
            await stack.enter_async_context(relay.listening(folder / "engine.sock"))
        yield


class EngineRelay:
    """Passes on what is allowed. `may_run`: also logs of and commands in this `instance`'s containers."""

    def __init__(self, engine: Path, *, instance: str, image: str, may_run: bool) -> None:
        self._engine = engine
        self._label = f"{LABEL_INSTANCE}={instance}"
        self._instance = instance
        self._image = image
        self._may_run = may_run
        self._serving: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self, path: Path) -> AsyncIterator[None]:
        """Take connections at `path`; whoever reaches its folder may connect."""
        server = await asyncio.start_unix_server(self._accept, path, limit=_PIECE)
        await asyncio.to_thread(path.chmod, 0o666)
        try:
            yield
        finally:
            server.close()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)
            await asyncio.sleep(0)  # what they closed is closed at the loop's next turn

    def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        if len(self._serving) >= _MAX_CONNECTIONS:
            writer.close()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        # Whatever a peer sends or cuts off ends its own connection and nothing else.
        with suppress(OSError, EOFError, ValueError, TimeoutError, asyncio.LimitOverrunError):
            try:
                async with asyncio.timeout(_REQUEST_S):
                    request = await read_request(reader)
                try:
                    await self._pass_on(request, reader, writer)
                except RefusedError as refused:
                    log.warning("engine_relay.refused", method=request.method, path="/".join(request.path)[:200])
                    await _refuse(writer, request, refused)
            finally:
                writer.close()

    async def _pass_on(self, request: Request, reader: StreamReader, writer: StreamWriter) -> None:
        target, body = await self._understand(request)
        engine_reader, engine_writer = await asyncio.open_unix_connection(self._engine, limit=_PIECE)
        try:
            if request.path[0] == "exec" and request.path[-1] == "start":
                engine_writer.write(_head(request.method, target, body, "Connection: Upgrade\r\nUpgrade: tcp"))
                if await _upgraded(engine_reader, writer):
                    await _both_ways(reader, writer, engine_reader, engine_writer)
            else:
                engine_writer.write(_head(request.method, target, body, "Connection: close"))
                await _one_way(reader, writer, engine_reader)
        finally:
            engine_writer.close()

    # --- what is allowed ---

    async def _understand(self, request: Request) -> tuple[str, bytes]:
        """Path and body for the engine. Raises `RefusedError`."""
        target = await self._looking(request)
        if target is None and self._may_run:
            target = await self._running(request)
        if target is None:
            raise RefusedError(HTTPStatus.FORBIDDEN, "This way to the engine doesn't lead there.")
        return target, exec_body(request.body) if request.path[-1] == "exec" else request.body

    async def _looking(self, request: Request) -> str | None:
        match (request.method, *request.path):
            case ("GET" | "HEAD", "_ping") | ("GET", "version"):
                return "/" + request.path[0]
            case ("GET", "containers", "json") | ("GET", "events"):
                return f"/{'/'.join(request.path)}?{urlencode(self._narrowed(request.query))}"
            case ("GET", "containers", name, "json"):
                return f"/containers/{await self._ours(name)}/json"
            case ("GET", "images", *name, "json") if "/".join(name) == self._image:
                return f"/images/{quote(self._image)}/json"
        return None

    async def _running(self, request: Request) -> str | None:
        query = f"?{urlencode(request.query)}" if request.query else ""
        match (request.method, *request.path):
            case ("GET", "containers", name, "logs") | ("POST", "containers", name, "exec"):
                return f"/containers/{await self._ours(name)}/{request.path[-1]}{query}"
            case ("GET", "exec", identifier, "json") | ("POST", "exec", identifier, "start" | "resize"):
                status, shown = await self._ask(f"/exec/{quote(identifier, safe='')}/json")
                if status == HTTPStatus.OK:
                    await self._ours(str(shown["ContainerID"]))
                return f"/exec/{quote(identifier, safe='')}/{request.path[-1]}{query}"
        return None

    def _narrowed(self, query: dict[str, str]) -> dict[str, str]:
        """The same question about this installation's containers alone."""
        # Values are a list, or as the engine's own clients write it {value: true}; the engine wants all of one kind.
        filters = {name: list(values) for name, values in _object(query.get("filters") or "{}").items()}
        filters["label"] = [*filters.get("label", []), self._label]
        return query | {"filters": json.dumps(filters)}

    async def _ours(self, name: str) -> str:
        """The container's id. Raises `RefusedError` for one that isn't there, or isn't this installation's."""
        status, shown = await self._ask(f"/containers/{quote(name, safe='')}/json")
        labels = shown["Config"].get("Labels") or {} if status == HTTPStatus.OK else {}
        if labels.get(LABEL_INSTANCE) != self._instance:
            raise RefusedError(HTTPStatus.NOT_FOUND, f"No such container: {name}")
        return str(shown["Id"])

    async def _ask(self, target: str) -> tuple[int, dict[str, Any]]:
        async with asyncio.timeout(_LOOK_S):
            reader, writer = await asyncio.open_unix_connection(self._engine, limit=_PIECE)
            try:
                # HTTP/1.0: an answer in one piece, to the end of the stream.
                writer.write(f"GET {target} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
                status = int((await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1])
                answer = bytearray()
                while len(answer) <= _MAX_ANSWER and (piece := await reader.read(_PIECE)):
                    answer += piece
            finally:
                writer.close()
        return status, _object(answer)


def exec_body(body: bytes) -> bytes:
    """The command with what it needs, as the container's own user. Raises `RefusedError`, `ValueError`."""
    asked = _object(body)
    if asked.get("Privileged") or asked.get("User"):
        raise RefusedError(HTTPStatus.FORBIDDEN, "Commands run as the container's own user.")
    return json.dumps({name: asked[name] for name in _EXEC_FIELDS if name in asked}).encode()


def _object(text: str | bytes | bytearray) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("a JSON object belongs there")  # noqa: TRY004 -- what was sent is wrong, not our code
    return value


async def read_request(reader: StreamReader) -> Request:
    """One request. Raises `ValueError` for what isn't one, or is too large; `EOFError` when it ends before its end."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *lines = head.rstrip("\r\n").split("\r\n")
    method, target, _ = line.split(" ")
    headers = {name.strip().lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
    length = int(headers.get("content-length", "0"))
    if length > _MAX_BODY or "transfer-encoding" in headers:
        raise ValueError("a body is given whole, and is small")
    body = await reader.readexactly(length)
    parts = urlsplit(target)
    path = parts.path.removeprefix("/").split("/")
    if path[0][:1] == "v" and path[0][1:2].isdigit():
        path = path[1:]
    query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    return Request(method, tuple(path), query, body)


# --- bytes ------------------------------------------------------------------------------------------------------


def _head(method: str, target: str, body: bytes, connection: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: docker", connection, f"Content-Length: {len(body)}"]
    if body:
        lines.append("Content-Type: application/json")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def _refuse(writer: StreamWriter, request: Request, refused: RefusedError) -> None:
    body = b"" if request.method == "HEAD" else json.dumps({"message": str(refused)}).encode()
    writer.write(
        f"HTTP/1.1 {refused.status} {refused.status.phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        + body
    )
    await writer.drain()


async def _upgraded(engine: StreamReader, writer: StreamWriter) -> bool:
    """Pass the answer's head on. One that isn't the agreed change of protocol is passed on whole: False."""
    head = await engine.readuntil(b"\r\n\r\n")
    writer.write(head)
    await writer.drain()
    if int(head.split(b" ", 2)[1]) == HTTPStatus.SWITCHING_PROTOCOLS:
        return True
    length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0")
    writer.write(await engine.readexactly(min(int(length.partition(b":")[2]), _MAX_BODY)))
    await writer.drain()
    return False


async def _one_way(reader: StreamReader, writer: StreamWriter, engine: StreamReader) -> None:
    """The engine's answer to its end, or until who asked has gone."""
    await _first_of(_copy(engine, writer), _ignore(reader))


async def _both_ways(
    reader: StreamReader, writer: StreamWriter, engine_reader: StreamReader, engine_writer: StreamWriter
) -> None:
    """Until the engine has ended, or for a while after who asked has."""

    async def upward() -> None:
        await _copy(reader, engine_writer)
        engine_writer.write_eof()
        await asyncio.sleep(_LAST_WORDS_S)

    await _first_of(_copy(engine_reader, writer), upward())


async def _first_of(*works: Coroutine[Any, Any, None]) -> None:
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _copy(source: StreamReader, target: StreamWriter) -> None:
    while piece := await source.read(_PIECE):
        target.write(piece)
        await target.drain()


async def _ignore(source: StreamReader) -> None:
    while await source.read(_PIECE):
        pass
