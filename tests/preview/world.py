"""Real parts around previews: the API and an app on uvicorn, Traefik in front of them, rows in Postgres."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import uvicorn
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse

from activities.language_models.openai_compatible import ModelServer, OpenAICompatibleModel
from activities.language_models.passthrough import NoChatCompletions
from activities.ports import ContainerState, ContainerStatus, FileStore, Runtime, Template
from api.app import create_app
from api.auth.tokens import AccessTokens
from api.preview.gate_key import gate_key
from api.services import ApiConfig, Services
from api.temporal import TemporalGateway
from storage import credentials, dev_servers, projects, users
from storage.engine import Database
from storage.event_listener import EventListener
from storage.event_log import EventReader
from storage.projects import NewProject, ProjectRecord
from storage.secret_box import SecretBox
from workers.stack.traefik_config import dynamic_config, static_config
from workflows.contracts.dev_servers import DevServerState, DevServerStep, StateChange
from workflows.contracts.names import ProjectRef, preview_host
from workflows.contracts.projects import ProjectState

DOMAIN = "localhost"
SECRET_KEY = "a secret key of the tests, long enough for anyone"
TRAEFIK = Path(__file__).parents[2] / ".venv/bin/traefik"


class ListingRuntime:
    """A runtime of which only the list of servers is asked."""

    def __init__(self) -> None:
        self.servers: list[ContainerStatus] = []

    async def discover(self) -> list[ContainerStatus]:
        return self.servers


@dataclass
class House:
    """The running whole. `port`: Traefik's; `api_port`: the API's own."""

    database: Database
    services: Services
    runtime: ListingRuntime
    port: int
    api_port: int
    seen: list[dict[str, Any]] = field(default_factory=list)

    async def new_project(self, email: str = "ann@example.com") -> ProjectRecord:
        async with self.database.transaction() as session:
            user = await users.create(session, email=email, name=None, password_hash="")
            new = NewProject(user.id, "p", template="static")
            project = await projects.create(session, new, limit=10)
            await projects.set_state(session, project.id, ProjectState.READY)
        return project

    async def bearer(self, user_id: int) -> str:
        """An API key of the user."""
        async with self.database.transaction() as session:
            _, key = await credentials.add_api_key(session, user_id, name="test", scopes=None, expires_at=None)
        return key

    async def token(self, project: ProjectRecord) -> str:
        """A preview token, by the public route."""
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.api_port}") as client:
            headers = {"Authorization": f"Bearer {await self.bearer(project.user_id)}"}
            answer = await client.post(f"/api/projects/{project.id}/preview-token", headers=headers)
        assert answer.status_code == 200, answer.text
        issued = answer.json()
        host = preview_host(project.ref, DOMAIN)
        shown = self.services.config.preview_port
        assert issued == {
            "token": issued["token"],
            "url": f"http://{host}:{shown}/?token={issued['token']}",
            "expires_in": 900,
        }
        return str(issued["token"])

    def host(self, project: ProjectRecord) -> str:
        return f"{preview_host(project.ref, DOMAIN)}:{self.port}"

    async def get(
        self, project: ProjectRecord, path: str = "/", *, method: str = "GET", **headers: str
    ) -> httpx.Response:
        """A request to the preview; header names with `_` for `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        raw = [
            (name.encode(), value.encode("latin-1")) for name, value in {"Host": self.host(project), **named}.items()
        ]
        # A whole URL, since httpx takes a path that begins with two slashes for an address.
        async with httpx.AsyncClient() as client:
            return await client.request(method, f"http://127.0.0.1:{self.port}{path}", headers=raw)

    async def cookies(self, project: ProjectRecord) -> str:
        """The cookie header of somebody who has opened the link."""
        answer = await self.get(project, f"/?token={await self.token(project)}")
        assert answer.status_code == 302, answer.text
        return "; ".join(value.partition(";")[0] for value in answer.headers.get_list("set-cookie"))

    @asynccontextmanager
    async def app_of(self, *owners: ProjectRecord) -> AsyncIterator[int]:
        """An app runs for these projects; its route is live. Yields its port."""
        async with serving(echo_app(self.seen)) as port:
            self.runtime.servers = [_running(project.ref, port) for project in owners]
            for project in owners:
                await self.set_server_state(project, DevServerState.RUNNING)
            await self._until_routed(owners[0], live=True)
            yield port

    async def set_server_state(self, project: ProjectRecord, state: DevServerState) -> None:
        async with self.database.transaction() as session:
            server = await dev_servers.get(session, project.id)
            assert server is not None
            step = DevServerStep(user_id=project.user_id, project_id=project.id, generation=server.generation)
            assert await dev_servers.record(session, StateChange(step=step, state=state))

    async def drop_routes(self, project: ProjectRecord) -> None:
        self.runtime.servers = []
        await self._until_routed(project, live=False)

    async def _until_routed(self, project: ProjectRecord, *, live: bool) -> None:
        token = await self.token(project)
        async with asyncio.timeout(10):
            while True:
                answer = await self.get(project, "/ready", X_Preview_Token=token)
                if ("x-app" in answer.headers) == live:
                    break
                await asyncio.sleep(0.05)
        self.seen.clear()


def _running(ref: ProjectRef, port: int) -> ContainerStatus:
    return ContainerStatus(ref, "id", ContainerState.RUNNING, "hash", address=("127.0.0.1", port))


def echo_app(seen: list[dict[str, Any]]) -> FastAPI:
    """An app that remembers what reached it."""
    app = FastAPI()

    @app.websocket("/socket")
    async def socket_(websocket: WebSocket) -> None:
        seen.append({"headers": list(websocket.headers.items())})
        await websocket.accept()
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            await websocket.send_text(f"echo {message.get('text')}")

    @app.get("/quiet")
    async def quiet(seconds: float) -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            yield b"data: first\n\n"
            await asyncio.sleep(seconds)
            yield b"data: last\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")

    @app.api_route("/{path:path}", methods=["GET", "POST", "PUT"])
    async def echo(request: Request) -> JSONResponse:
        body = await request.body()
        headers = [(name.decode(), value.decode("latin-1")) for name, value in request.headers.raw]
        seen.append({"method": request.method, "headers": headers, "size": len(body), "url": str(request.url)})
        return JSONResponse({"ok": True}, headers={"X-App": "yes"})

    return app


@asynccontextmanager
async def serving(app: FastAPI, **settings: Any) -> AsyncIterator[int]:
    """The app on a free port of loopback."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio sets it only on sockets that it made
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1, **settings)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve([listener]))  # without its signal handlers
    try:
        async with asyncio.timeout(10):
            while not server.started:
                if task.done():
                    task.result()
                await asyncio.sleep(0.01)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task
        listener.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@asynccontextmanager
async def proxy(folder: Path, static: Mapping[str, Any], dynamic: Mapping[str, Any], port: int) -> AsyncIterator[None]:
    """Traefik with these configurations, ready."""
    (folder / "dynamic.yml").write_text(json.dumps(dynamic))
    (folder / "static.yml").write_text(json.dumps(static))
    with (folder / "traefik.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            TRAEFIK, f"--configfile={folder / 'static.yml'}", stdout=log, stderr=log
        )
    try:
        await _until_gated(port)
        yield
        # Before the end: a poll that is cut off by it is complained of too.
        if complaints := _complaints((folder / "traefik.log").read_text()):
            raise AssertionError("\n".join(complaints))
    except TimeoutError as error:
        raise AssertionError((folder / "traefik.log").read_text()) from error
    finally:
        process.terminate()
        async with asyncio.timeout(10):
            await process.wait()


def _complaints(log: str) -> list[str]:
    """Its errors, but for those about a container that goes while it is being looked at."""
    return [line for line in log.splitlines() if "ERR" in line and "providerName=docker" not in line]


async def _until_gated(port: int) -> None:
    async with asyncio.timeout(15), httpx.AsyncClient() as client:
        while True:
            try:
                answer = await client.get(f"http://127.0.0.1:{port}/", headers={"Host": f"user1-project1.{DOMAIN}"})
            except httpx.TransportError:
                await asyncio.sleep(0.03)
                continue
            if answer.status_code == 401:
                return
            await asyncio.sleep(0.03)


@asynccontextmanager
async def house(
    database: Database, database_url: str, folder: Path, temporal_address: str = "127.0.0.1:9"
) -> AsyncIterator[House]:
    """API, Traefik and database; `temporal_address` is needed by what starts a project only."""
    runtime = ListingRuntime()
    port = free_port()
    config = ApiConfig(SECRET_KEY, "http://localhost:8000", DOMAIN, port)
    listener = EventListener(database_url)
    services = Services(
        config=config,
        database=database,
        events=EventReader(database, listener),
        temporal=TemporalGateway(temporal_address, "default"),
        files=cast("FileStore", None),  # no route under test asks for files
        templates={"static": Template("static", "Static", "Plain")},
        runtime=cast("Runtime", runtime),
        secrets=SecretBox(SECRET_KEY),
        models=OpenAICompatibleModel(ModelServer("http://127.0.0.1:1/v1")),
        completions=NoChatCompletions(),
    )

    @asynccontextmanager
    async def opened() -> AsyncIterator[Services]:
        yield services

    async with serving(create_app(opened, config), lifespan="on") as api_port:
        api_url, key = f"http://127.0.0.1:{api_port}", gate_key(services.secrets)
        static = static_config(
            discovery="http",
            listen=f"127.0.0.1:{port}",
            api_url=api_url,
            gate_key=key,
            instance="test",
            dynamic_file=folder / "dynamic.yml",
        )
        static["providers"]["http"]["pollInterval"] = "50ms"
        async with proxy(folder, static, dynamic_config(preview_domain=DOMAIN, api_url=api_url, gate_key=key), port):
            yield House(database, services, runtime, port, api_port)


def access_token(services: Services, user_id: int, family: Any) -> str:
    """A platform token as the console's page holds it."""
    return AccessTokens(services.secrets.derive("access-token"), 900).issue(user_id, family)
