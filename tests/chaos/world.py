"""A whole stack whose processes are killed while they work, and what can be seen of it from outside."""

import asyncio
import io
import json
import os
import signal
import sys
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import uuid4

import asyncpg
import httpx
import psutil
from httpx_sse import aconnect_sse

from storage.engine import plain_dsn
from tests.chaos.observers import Observer
from tests.workers.stacks import RunningStack, free_ports, running_stack

PASSWORD: Final = "correct horse battery"
DOWN: Final = ("stopped", "failed")
STARTS: Final = "starts.log"

Result = TypeVar("Result")


async def until(ask: Callable[[], Awaitable[Result | None]], what: str, timeout_s: float = 40.0) -> Result:
    """The first answer that isn't None or False."""
    try:
        async with asyncio.timeout(timeout_s):
            while not (answer := await ask()):  # noqa: ASYNC110 -- processes that no event reaches are asked
                await asyncio.sleep(0.05)
            return answer
    except TimeoutError:
        raise AssertionError(f"{what}: not within {timeout_s:g} s") from None


def program(delay_s: float = 0) -> str:
    """A `studio.toml` whose server answers after `delay_s`, and notes each of its starts in a file."""
    command = f"echo started >> {STARTS}; sleep {delay_s:g}; exec python3 -m http.server --bind $HOST $PORT"
    return f'command = "{command}"\nport = 8000\n'


def many_files(count: int) -> bytes:
    """An archive of `count` small files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        for number in range(count):
            entry = tarfile.TarInfo(f"many/{number // 200}/{number}.txt")
            entry.size = 6
            archive.addfile(entry, io.BytesIO(b"small\n"))
    return packed.getvalue()


@dataclass(frozen=True)
class Event:
    """One event as the stream gave it."""

    seq: int
    type: str
    data: dict[str, Any]


@dataclass(frozen=True)
class SecondApi:
    """Another replica, at `url`, to be killed at will."""

    process: asyncio.subprocess.Process
    url: str


@contextmanager
def world_of(
    environment: Mapping[str, str], observe: Callable[["World"], Observer], *, ready_s: float = 90.0
) -> Iterator["World"]:
    """A stack of these settings, ready, and ended afterwards: nothing of it lives on."""
    quick = {"RECONCILE_INTERVAL_S": "2", "RECONCILE_GRACE_S": "4"}
    with ExitStack() as afterwards, running_stack({**environment, **quick}, ready_s) as stack:
        made = World(stack, observe)
        afterwards.callback(made.observer.close)
        yield made


class World:
    """The stack, its database, and its dev servers as their observer sees them."""

    def __init__(self, stack: RunningStack, observe: Callable[["World"], Observer]) -> None:
        self.stack = stack
        self.environment = psutil.Process(stack.pid("worker")).environ()
        self.instance = self.environment["INSTANCE"]
        self.files = Path(self.environment["PROJECTS_ROOT"])
        self.observer = observe(self)

    # --- processes ---

    def kill(self, part: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Signal a part by its pid file; how many lines the stack had said by then."""
        said = len(self.stack.lines)
        os.kill(self.stack.pid(part), number)
        return said

    async def until_back(self, part: str, said: int) -> None:
        """Until the supervisor has the part again, and the API all that it needs."""
        await asyncio.to_thread(self.stack.wait_line, part, "ready again after", timeout_s=60, since=said)
        await asyncio.to_thread(self.stack.wait_answering, 60)

    @asynccontextmanager
    async def process(self, module: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """A process of the service beside the stack's own: a second worker, a second API. Ended by SIGKILL."""
        log = (self.stack.data / "logs" / f"{module}-{uuid4().hex[:6]}.log").open("wb")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
            env={**self.environment, **environment}, start_new_session=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            log.close()

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """A second worker, which works already."""
        ready = self.stack.data / f"{uuid4().hex}.ready"

        async def works() -> bool:
            return ready.exists()

        async with self.process("workers.worker", READY_FILE=str(ready)) as process:
            await until(works, "a second worker")
            yield process

    @asynccontextmanager
    async def api(self) -> AsyncIterator["SecondApi"]:
        """A second API, which answers already."""
        [port] = free_ports(1)
        url = f"http://127.0.0.1:{port}"

        async def answers() -> bool:
            async with httpx.AsyncClient() as http:
                try:
                    return (await http.get(f"{url}/healthz")).is_success
                except httpx.TransportError:
                    return False

        async with self.process("workers.api", API_PORT=str(port)) as process:
            await until(answers, "a second API")
            yield SecondApi(process, url)

    # --- the database ---

    async def fetch(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(plain_dsn(self.environment["DATABASE_URL"]), timeout=10)
        try:
            await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
            return list(await connection.fetch(statement, *arguments))
        finally:
            await connection.close()

    # --- people ---

    @asynccontextmanager
    async def person(self) -> AsyncIterator["Person"]:
        """Somebody new, signed in."""
        async with httpx.AsyncClient(base_url=self.stack.api, timeout=75) as http:
            email = f"{uuid4().hex[:12]}@example.com"
            answer = await http.post("/api/auth/register", json={"email": email, "password": PASSWORD})
            assert answer.status_code == 201, answer.text
            http.cookies.clear()
            http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
            yield Person(self, http, int(answer.json()["user"]["id"]))


class Person:
    """A user with a session."""

    def __init__(self, world: World, http: httpx.AsyncClient, user_id: int) -> None:
        self.world = world
        self.http = http
        self.id = user_id

    @asynccontextmanager
    async def at(self, url: str) -> AsyncIterator[httpx.AsyncClient]:
        """A client of theirs at another address, with its connections open."""
        async with httpx.AsyncClient(base_url=url, headers=self.http.headers, timeout=30) as http:
            await asyncio.gather(*(http.get("/api/users/me") for _ in range(8)))
            yield http

    async def make(self, studio_toml: str | None = None) -> "Project":
        """A project that is ready, and starts as `studio_toml` says: by default at once."""
        body = {"name": "p", "template": "static"}
        answer = await self.http.post("/api/projects", json=body, headers={"Prefer": "wait=60"})
        assert (answer.status_code, answer.json()["state"]) == (201, "ready"), answer.text
        project = Project(self, answer.json()["id"])
        await project.write("studio.toml", program() if studio_toml is None else studio_toml)
        return project

    async def start(self, studio_toml: str | None = None) -> "Project":
        """A project that runs."""
        project = await self.make(studio_toml)
        await project.run("start")
        return project

    async def operations(self) -> list[asyncpg.Record]:
        """All of theirs, in the order in which they were accepted."""
        return await self.world.fetch("SELECT * FROM operations WHERE user_id = $1 ORDER BY id", self.id)

    async def until_ended(self, timeout_s: float = 60.0) -> list[asyncpg.Record]:
        """All of their operations, once none runs any more."""

        async def ended() -> list[asyncpg.Record] | None:
            found = await self.operations()
            return found if all(row["state"] != "running" for row in found) else None

        return await until(ended, f"the end of all operations of user {self.id}", timeout_s)

    async def leave(self) -> None:
        """Delete all projects, and wait until they are gone."""
        for project in (await self.http.get("/api/projects", params={"limit": 200})).json()["items"]:
            await self.http.delete(f"/api/projects/{project['id']}")

        async def gone() -> bool:
            return not await self.world.fetch("SELECT FROM projects WHERE user_id = $1", self.id)

        await until(gone, f"the deletion of all projects of user {self.id}")


class Project:
    """A project of somebody's."""

    def __init__(self, owner: Person, project_id: int) -> None:
        self.owner = owner
        self.world = owner.world
        self.id = project_id

    @property
    def folder(self) -> Path:
        return self.world.files / "users" / str(self.owner.id) / "projects" / str(self.id)

    @property
    def unfinished(self) -> list[Path]:
        """Folders that are being made or removed for it."""
        return list((self.world.files / ".studio-store" / "work").glob(f"{self.owner.id}-{self.id}-*"))

    async def call(self, method: str, path: str = "", **request: Any) -> httpx.Response:
        return await self.owner.http.request(method, f"/api/projects/{self.id}{path}", **request)

    async def write(self, path: str, content: str) -> None:
        answer = await self.call("PUT", f"/files/{path}", content=content.encode())
        assert answer.is_success, answer.text

    async def accept(self, action: str) -> str:
        """Give a command; the id of its operation."""
        answer = await self.call("POST", f"/{action}")
        assert answer.status_code == 202, answer.text
        return answer.headers["Location"].rpartition("/")[2]

    async def run(self, action: str) -> dict[str, Any]:
        """Give a command and wait for how it ends; it has to end as it says."""
        answer = await self.call("POST", f"/{action}", headers={"Prefer": "wait=60"})
        assert answer.status_code == 200, answer.text
        server: dict[str, Any] = answer.json()["dev_server"]
        assert server["state"] == ("stopped" if action == "stop" else "running"), server
        return server

    async def delete(self) -> httpx.Response:
        return await self.call("DELETE")

    async def row(self) -> asyncpg.Record:
        [row] = await self.world.fetch("SELECT * FROM dev_servers WHERE project_id = $1", self.id)
        return row

    async def until_state(self, *states: str, timeout_s: float = 60.0) -> asyncpg.Record:
        """The dev server's row, once it is in one of `states`."""

        async def there() -> asyncpg.Record | None:
            row = await self.row()
            return row if row["state"] in states else None

        return await until(there, f"project {self.id} {' or '.join(states)}", timeout_s)

    async def follow(self, since: int = 0) -> AsyncGenerator[Event]:
        """Its events after `since`, as a client's stream gives them."""
        address = f"/api/projects/{self.id}/events"
        headers = {"Last-Event-ID": str(since)} if since else {}
        async with aconnect_sse(self.owner.http, "GET", address, headers=headers, timeout=30) as source:
            source.response.raise_for_status()
            async for frame in source.aiter_sse():
                body = json.loads(frame.data)
                assert (frame.id, frame.event) == (str(body["seq"]), body["type"])
                yield Event(body["seq"], body["type"], body["data"])

    async def until_event(self, kind: str, since: int = 0, timeout_s: float = 40.0, **data: str) -> Event:
        """The first event of that type with that data."""
        async with asyncio.timeout(timeout_s), aclosing(self.follow(since)) as events:
            async for event in events:
                if event.type == kind and data.items() <= event.data.items():
                    return event
        raise AssertionError(f"the stream ended before {kind} {data}")

    async def last_seq(self) -> int:
        [row] = await self.world.fetch("SELECT last_seq FROM event_logs WHERE project_id = $1", self.id)
        return int(row["last_seq"])

    async def log(self) -> list[Event]:
        """All events so far, by the stream."""
        last, log = await self.last_seq(), list[Event]()
        async with asyncio.timeout(30), aclosing(self.follow()) as events:
            async for event in events:
                log.append(event)
                if event.seq >= last:
                    return log
        raise AssertionError(f"the stream ended after {log}")

    def starts(self) -> int:
        """How often its program was started."""
        path = self.folder / STARTS
        return len(path.read_text().splitlines()) if path.exists() else 0

    async def check_sound(self) -> list[Event]:
        """Nothing twice, nothing lost, nothing left over; returns the log."""
        log = await self.log()
        assert [event.seq for event in log] == list(range(1, len(log) + 1))
        for kind in ("project.state", "dev_server.state"):
            check_told_once([event for event in log if event.type == kind])
        check_told_once([event for event in log if event.type.startswith("dev_server.")])
        assert len(self.world.observer.servers(self.owner.id, self.id)) <= 1
        assert self.unfinished == []
        return log


def check_told_once(events: Iterable[Event]) -> None:
    for earlier, later in pairwise(events):
        assert (earlier.type, earlier.data) != (later.type, later.data), f"told twice: {earlier}, {later}"


def states(log: Iterable[Event]) -> list[str]:
    """The states that the dev server went through."""
    return [event.data["state"] for event in log if event.type == "dev_server.state"]
