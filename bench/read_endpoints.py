"""Requests a second of the project read endpoints, against a bare FastAPI + asyncpg handler of the same query.

`python -m bench.read_endpoints` starts a Postgres of its own and two servers, one after the other on the same core;
the client sits on the other core and keeps eight connections busy.
"""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import cast

import asyncpg
import httpx
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from sqlalchemy import bindparam

from activities.files.store import DiskFileStore
from activities.language_models.open import NoLanguageModel
from activities.language_models.passthrough import NoChatCompletions
from activities.ports import Runtime
from api.app import create_app
from api.log import configure_logging
from api.services import ApiConfig, Services
from api.temporal import TemporalGateway
from storage import project_views, projects
from storage.engine import Database, plain_dsn
from storage.event_listener import EventListener
from storage.event_log import EventReader
from storage.migrate import migrate
from storage.projects import NewProject
from storage.secret_box import SecretBox
from storage.statements import Statement
from storage.tables import Project
from workers.stack.postgres import EmbeddedPostgres

CONNECTIONS = 8
SECONDS = 4.0
ROUNDS = 3
TARGET = 0.6
KEY = "bench" * 8


def bare_app(dsn: str) -> FastAPI:
    """The floor: one handler, one pool, the statement that the API runs, without its check of the session."""
    query = project_views._select(Project.id == bindparam("project_id"))  # noqa: SLF001 -- the same query, by definition
    statement = Statement(query)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with asyncpg.create_pool(plain_dsn(dsn), min_size=4, max_size=10) as pool:
            app.state.pool = pool
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/api/projects/{project_id}")
    async def read(project_id: int, request: Request) -> dict[str, object]:
        values = {"project_id": project_id, "user_id": int(request.headers["x-user"])}
        row = await request.app.state.pool.fetchrow(statement.sql, *statement.arguments(values))
        if row is None:
            raise HTTPException(404)
        return dict(row)

    return app


def own_app(dsn: str, folder: Path) -> FastAPI:
    """The API as it is served, but for a runtime and Temporal, which reads don't touch."""
    config = ApiConfig(secret_key=KEY, public_url="http://localhost", preview_domain="localhost", preview_port=8080)

    @asynccontextmanager
    async def open_services() -> AsyncIterator[Services]:
        database, listener = Database(dsn), EventListener(dsn)
        try:
            yield Services(
                config=config,
                database=database,
                events=EventReader(database, listener),
                temporal=TemporalGateway("127.0.0.1:1", "default"),
                files=DiskFileStore(folder, None),
                templates={},
                runtime=cast("Runtime", None),
                secrets=SecretBox(KEY),
                models=NoLanguageModel(),
                completions=NoChatCompletions(),
            )
        finally:
            await listener.close()
            await database.close()

    return create_app(open_services, config)


def serve(kind: str, dsn: str, port: int) -> None:
    """One server, on the first core."""
    os.sched_setaffinity(0, {0})
    configure_logging()
    app = bare_app(dsn) if kind == "bare" else own_app(dsn, Path(tempfile.gettempdir()))
    uvicorn.run(app, port=port, access_log=False, log_config=None)


# --- the client -------------------------------------------------------------------------------------------------


async def requests_per_second(port: int, path: str, headers: dict[str, str]) -> float:
    """Keep-alive requests on `CONNECTIONS` connections for `SECONDS`; every answer must be 200."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode()
    end = time.perf_counter() + SECONDS

    async def one() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        count = 0
        while time.perf_counter() < end:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head.decode())
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
            count += 1
        writer.close()
        return count

    began = time.perf_counter()
    counts = await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    return sum(counts) / (time.perf_counter() - began)


async def _until_up(port: int, path: str, headers: dict[str, str]) -> None:
    async with httpx.AsyncClient() as client, asyncio.timeout(30):
        while True:
            try:
                (await client.get(f"http://127.0.0.1:{port}{path}", headers=headers)).raise_for_status()
            except httpx.HTTPError:
                await asyncio.sleep(0.1)
            else:
                return


async def _prepare(dsn: str, port: int) -> tuple[int, int, str]:
    """A user with a project, and their access token: made by the running API, as clients would."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        body = {"email": "bench@example.com", "password": "correct horse battery"}
        answer = (await client.post("/api/auth/register", json=body)).raise_for_status().json()
    database = Database(dsn)
    async with database.transaction() as session:
        project = await projects.create(session, NewProject(answer["user"]["id"], "bench"), limit=10)
    await database.close()
    return answer["user"]["id"], project.id, answer["access_token"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _spawn(kind: str, dsn: str, port: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench.read_endpoints", kind, dsn, str(port)], stderr=subprocess.DEVNULL
    )


async def measure(dsn: str) -> list[dict[str, object]]:
    """A row per endpoint: the API, the floor, and their ratio, medians of the rounds, taken in turn."""
    os.sched_setaffinity(0, {1})
    ports = {kind: _free_port() for kind in ("bare", "own")}
    servers = [_spawn(kind, dsn, port) for kind, port in ports.items()]
    try:
        await _until_up(ports["own"], "/healthz", {})
        user_id, project_id, token = await _prepare(dsn, ports["own"])
        signed, named = {"Authorization": f"Bearer {token}"}, {"x-user": str(user_id)}
        floor_path = f"/api/projects/{project_id}"
        await _until_up(ports["bare"], floor_path, named)
        paths = {"project": floor_path, "status": f"{floor_path}/status", "list": "/api/projects"}
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in paths}
        for _ in range(ROUNDS):
            for name, path in paths.items():
                floor = await requests_per_second(ports["bare"], floor_path, named)
                results[name].append((await requests_per_second(ports["own"], path, signed), floor))
    finally:
        for server in servers:
            server.terminate()
            server.wait(10)
    return [
        {
            "name": f"read {name}",
            "requests_per_s": round(median(own for own, _ in pairs)),
            "floor_requests_per_s": round(median(floor for _, floor in pairs)),
            "ratio": round(median(own / floor for own, floor in pairs), 2),
            "target": f">= {TARGET}",
        }
        for name, pairs in results.items()
    ]


def main() -> None:
    """Measure on a Postgres of its own and print a JSON line per endpoint."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    folder.chmod(0o755)
    postgres = EmbeddedPostgres(folder / "postgres")
    try:
        postgres.start()
        asyncio.run(migrate(postgres.url()))
        for row in asyncio.run(measure(postgres.url())):
            print(json.dumps(row), flush=True)
    finally:
        postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        main()
