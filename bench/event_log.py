"""Milliseconds from `EventBatcher.put` in a worker to an SSE client of the API: 50 streams of 20 events a second.

`python -m bench.event_log` starts a Postgres of its own (durable commits), the API, a worker and clients, each in
a process of its own. The floor is measured the same way against a bare SSE server without a database.
"""

import asyncio
import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from statistics import quantiles
from typing import cast

import httpx
import uvicorn
from sqlalchemy import text

from activities.files.store import DiskFileStore
from activities.language_models.open import NoLanguageModel
from activities.language_models.passthrough import NoChatCompletions
from activities.ports import Runtime
from api.app import create_app
from api.services import ApiConfig, Services
from api.temporal import TemporalGateway
from storage import event_log
from storage.engine import Database
from storage.event_batcher import EventBatcher
from storage.event_listener import EventListener
from storage.event_log import EventReader
from storage.migrate import migrate
from storage.secret_box import SecretBox
from workers.stack.postgres import EmbeddedPostgres
from workflows.contracts.events import EventType, NewEvent

STREAMS = 50
RATE = 20.0
WARM_UP_S = 2.0
MEASURED_S = 10.0
TARGET_MS = 50.0
TOKEN = "word " * 2

Samples = list[float]


# --- the processes ----------------------------------------------------------------------------------------------


async def emit(stream: int, send: "asyncio.Queue[float]") -> None:
    """Says when an event is to be written: on a fixed beat, however long the writing takes."""
    beat = time.monotonic() + random.Random(stream).random() / RATE
    end = time.monotonic() + WARM_UP_S + MEASURED_S
    while beat < end:
        await asyncio.sleep(max(0.0, beat - time.monotonic()))
        await send.put(time.monotonic())
        beat += 1 / RATE


async def work(url: str, projects: list[int]) -> None:
    """The worker: one batcher for all its streams."""
    database = Database(url)
    batcher = EventBatcher(database)

    async def stream(project_id: int) -> None:
        moments: asyncio.Queue[float] = asyncio.Queue()
        emitting = asyncio.create_task(emit(project_id, moments))
        async with asyncio.TaskGroup() as writing:
            while not (emitting.done() and moments.empty()):
                try:
                    async with asyncio.timeout(0.5):
                        sent = await moments.get()
                except TimeoutError:
                    continue
                data = {"sent": sent, "text": TOKEN}
                event = NewEvent(project_id=project_id, type=EventType.FILE_CHANGED, data=data)
                writing.create_task(batcher.put(event))

    await asyncio.gather(*(stream(project_id) for project_id in projects))
    await batcher.close()
    await database.close()


def serve_api(url: str, port: int) -> None:
    """The API as it is, without the parts that streaming doesn't touch."""
    config = ApiConfig(
        secret_key="k" * 32, public_url="http://localhost", preview_domain="localhost", preview_port=None
    )

    @asynccontextmanager
    async def open_services() -> AsyncIterator[Services]:
        database, listener = Database(url), EventListener(url)
        yield Services(
            config=config,
            database=database,
            events=EventReader(database, listener),
            temporal=TemporalGateway("127.0.0.1:1", "default"),
            files=DiskFileStore(Path("/nonexistent"), None),
            templates={},
            runtime=cast("Runtime", None),
            secrets=SecretBox(config.secret_key),
            models=NoLanguageModel(),
            completions=NoChatCompletions(),
        )
        await listener.close()
        await database.close()

    app = create_app(open_services, config)
    uvicorn.run(app, port=port, log_config=None, access_log=False, timeout_graceful_shutdown=2)


async def serve_floor(port: int) -> None:
    """The least that sends as many events to as many clients: asyncio, and a write per event."""

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        moments: asyncio.Queue[float] = asyncio.Queue()
        emitting = asyncio.create_task(emit(int(request.split(b"/")[3]), moments))
        while not (emitting.done() and moments.empty()):
            data = {"seq": 1, "type": "file.changed", "data": {"sent": await moments.get(), "text": TOKEN}}
            writer.write(b"id: 1\nevent: file.changed\ndata: " + json.dumps(data).encode() + b"\n\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(stream, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


# --- the clients ------------------------------------------------------------------------------------------------


async def listen(port: int, project_id: int, headers: dict[str, str], begin: float, samples: Samples) -> None:
    """One client: takes what was sent after `begin`, until nothing has come for a second after the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"GET /api/projects/{project_id}/events HTTP/1.1", "Host: bench"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    try:
        async with asyncio.timeout(WARM_UP_S + MEASURED_S + 3):
            while line := await reader.readline():
                if line.startswith(b"data: "):
                    sent = json.loads(line[6:])["data"]["sent"]
                    if sent >= begin:
                        samples.append(1000 * (time.monotonic() - sent))
    except TimeoutError:
        pass
    finally:
        writer.close()


async def listen_all(port: int, projects: list[int], headers: dict[str, str]) -> Samples:
    samples: Samples = []
    begin = time.monotonic() + WARM_UP_S
    await asyncio.gather(*(listen(port, project_id, headers, begin, samples) for project_id in projects))
    return samples


# --- the run ----------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(stack: ExitStack, *arguments: str) -> subprocess.Popen[bytes]:
    """A part in a process of its own; quiet, and ended with the run."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.event_log", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def end() -> None:
        process.terminate()
        process.wait(timeout=10)

    stack.callback(end)
    return process


async def wait_open(port: int) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


async def sign_up(port: int) -> tuple[int, dict[str, str]]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        body = {"email": "bench@example.com", "password": "a long password"}
        answer = (await client.post("/api/auth/register", json=body)).raise_for_status().json()
    return answer["user"]["id"], {"Authorization": f"Bearer {answer['access_token']}"}


async def make_projects(url: str, user_id: int) -> list[int]:
    database = Database(url)
    async with database.transaction() as session:
        rows = await session.scalars(
            text("INSERT INTO projects (user_id, name, state) SELECT :u, 'p', 'ready' FROM generate_series(1, :n)"
                 " RETURNING id"),
            {"u": user_id, "n": STREAMS},
        )  # fmt: skip
        projects = [int(row) for row in rows]
        for project_id in projects:
            await event_log.begin(session, project_id)
    await database.close()
    return projects


async def measure(url: str) -> Samples:
    port = free_port()
    with ExitStack() as stack:
        start(stack, "api", url, str(port))
        await wait_open(port)
        user_id, headers = await sign_up(port)
        projects = await make_projects(url, user_id)
        listening = asyncio.create_task(listen_all(port, projects, headers))
        await asyncio.sleep(0.5)
        start(stack, "worker", url, json.dumps(projects))
        return await listening


async def measure_floor() -> Samples:
    port = free_port()
    with ExitStack() as stack:
        start(stack, "floor", str(port))
        await wait_open(port)
        return await listen_all(port, list(range(1, STREAMS + 1)), {})


def row(name: str, samples: Samples) -> float:
    """Print a row; return its p95."""
    if len(samples) < 0.8 * STREAMS * RATE * MEASURED_S:
        sys.exit(f"{name}: only {len(samples)} events arrived")
    cuts = quantiles(samples, n=100)
    print(f"{name:<44} {cuts[49]:>8.1f} {cuts[94]:>8.1f} {cuts[98]:>8.1f} {len(samples):>8}")
    return cuts[94]


def main() -> int:
    """Run all; 0 when the target is met."""
    folder = Path(tempfile.mkdtemp(prefix="studio-bench-"))
    try:
        with EmbeddedPostgres(folder) as postgres:
            asyncio.run(migrate(postgres.url()))
            samples = asyncio.run(measure(postgres.url()))
        floor = asyncio.run(measure_floor())
    finally:
        shutil.rmtree(folder)
    print(f"{f'{STREAMS} streams of {RATE:.0f} events/s, ms':<44} {'p50':>8} {'p95':>8} {'p99':>8} {'events':>8}")
    row("floor: bare asyncio SSE, no database", floor)
    p95 = row("append in a worker → SSE client of the API", samples)
    print(f"{'target':<44} {'':>8} {TARGET_MS:>8.1f}   {'met' if p95 <= TARGET_MS else 'MISSED'}")
    return 0 if p95 <= TARGET_MS else 1


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            sys.exit(main())
        case ["api", database_url, api_port]:
            serve_api(database_url, int(api_port))
        case ["worker", database_url, project_ids]:
            asyncio.run(work(database_url, json.loads(project_ids)))
        case ["floor", floor_port]:
            asyncio.run(serve_floor(int(floor_port)))
