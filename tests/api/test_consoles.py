"""Log, commands and terminals over HTTP, on real processes (the local runtime) behind a real server."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import httpx
import pytest
import websockets
from httpx_sse import aconnect_sse
from sqlalchemy import text

from activities.ports import DevServerSpec, ResourceLimits, Runtime
from activities.runtimes.open import RuntimeMode, RuntimeSettings, open_runtime
from api import sse
from api.consoles.service import EXECS_PER_USER
from storage import projects
from storage.engine import Database
from tests.api.passes import delete_key, log_out, passes
from tests.api.stand import Account, register
from tests.runtimes.waiting import until
from workflows.contracts.names import ProjectRef, project_subpath

SERVE = 'echo started; exec python3 -u -m http.server "$PORT" --bind "$HOST"'
IDLE = "exec sleep 600"


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[Runtime]:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    settings = RuntimeSettings(
        mode=RuntimeMode.LOCAL,
        instance=f"test{uuid4().hex[:8]}",
        data_dir=tmp_path / "data",
        projects_root=tmp_path / "projects",
    )
    async with open_runtime(settings) as opened:
        yield opened
        for status in await opened.discover():
            await opened.remove(status.ref)


@dataclass
class Stand:
    """An owner with a project, over HTTP."""

    client: httpx.AsyncClient
    database: Database
    owner: Account
    ref: ProjectRef
    folder: Path

    @property
    def path(self) -> str:
        return f"/api/projects/{self.ref.project_id}"

    async def exec(self, command: str, **options: object) -> httpx.Response:
        return await self.client.post(
            f"{self.path}/exec", json={"command": command, **options}, headers=self.owner.headers
        )

    async def leases(self) -> list[str]:
        async with self.database.transaction() as session:
            return list(await session.scalars(text("SELECT kind FROM leases")))

    async def unleased(self) -> bool:
        return not await self.leases()

    async def terminal_url(self, **query: object) -> str:
        answer = await self.client.post("/api/auth/ticket", json={}, headers=self.owner.headers)
        words = "&".join(f"{name}={value}" for name, value in {"ticket": answer.json()["ticket"], **query}.items())
        return f"ws{str(self.client.base_url).removeprefix('http')}{self.path}/terminal?{words}"


async def start(runtime: Runtime, ref: ProjectRef, command: str = SERVE) -> None:
    async def ignore(stage: str) -> None:
        pass

    spec = DevServerSpec(ref, command, 8000, limits=ResourceLimits(memory_mb=256, pids=64))
    await runtime.launch(spec, on_stage=ignore)


@pytest.fixture
async def stand(client: httpx.AsyncClient, database: Database, tmp_path: Path) -> Stand:
    owner = await register(client)
    async with database.transaction() as session:
        project = await projects.create(session, projects.NewProject(owner.user_id, "one"), limit=5)
    folder = tmp_path / "projects" / project_subpath(project.ref)
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    return Stand(client, database, owner, project.ref, folder)


async def test_a_command_needs_a_running_server(stand: Stand) -> None:
    answer = await stand.exec("true")
    assert (answer.status_code, answer.json()["code"]) == (409, "not_running")
    assert "start" in answer.json()["detail"]
    logs = await stand.client.get(f"{stand.path}/logs", headers=stand.owner.headers)
    assert (logs.status_code, logs.text) == (200, "")
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with websockets.connect(await stand.terminal_url()):
            pass
    assert refused.value.response.status_code in (403, 409)


async def test_a_command_answers_with_streams_and_exit_code(stand: Stand, runtime: Runtime) -> None:
    await start(runtime, stand.ref)
    answer = await stand.exec("echo out; echo err >&2; echo $A; exit 3", env={"A": "b"})
    body = answer.json()
    assert answer.status_code == 200
    assert body.pop("duration_ms") >= 0
    assert body == {"exit_code": 3, "stdout": "out\nb\n", "stderr": "err\n", "truncated": False}
    assert await stand.leases() == []


async def test_output_time_and_input_have_bounds(stand: Stand, runtime: Runtime) -> None:
    await start(runtime, stand.ref)
    big = (await stand.exec("head -c 3000000 /dev/zero | tr '\\0' x")).json()
    assert (len(big["stdout"]), big["truncated"], big["exit_code"]) == (1024 * 1024, True, 0)
    late = (await stand.exec("echo begun; sleep 30", timeout_s=0.5)).json()
    assert (late["exit_code"], late["stdout"]) == (124, "begun\n")
    for bad in ({"timeout_s": 601}, {"cwd": "../x"}, {"cwd": "/etc"}, {"env": {"A=B": "c"}}, {"unknown": 1}):
        assert (await stand.exec("true", **bad)).status_code == 422, bad


async def test_a_commands_output_is_streamed_and_keeps_the_server_awake(stand: Stand, runtime: Runtime) -> None:
    await start(runtime, stand.ref)
    headers = {**stand.owner.headers, "Accept": "text/event-stream"}
    body = {"command": "printf 'gr\\303'; sleep 0.3; printf '\\274n'; echo err >&2; exit 4"}
    held: list[str] = []
    got: list[tuple[str, dict[str, object]]] = []
    async with aconnect_sse(stand.client, "POST", f"{stand.path}/exec", json=body, headers=headers) as source:
        async for event in source.aiter_sse():
            held = held or await stand.leases()
            got.append((event.event, json.loads(event.data)))
    assert "".join(str(data["text"]) for name, data in got if name == "stdout") == "grün"
    assert [data["text"] for name, data in got if name == "stderr"] == ["err\n"]
    assert got[-1][0] == "exit"
    assert (got[-1][1]["exit_code"], got[-1][1]["timed_out"]) == (4, False)
    assert held == ["exec"]
    assert await stand.leases() == []


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_a_client_that_leaves_takes_its_command_along(stand: Stand, runtime: Runtime, accept: str) -> None:
    await start(runtime, stand.ref)
    body = {"command": "setsid sh -c 'trap \"\" TERM; while :; do date +%s%N > beat; sleep 0.1; done'", "timeout_s": 60}
    headers = {**stand.owner.headers, "Accept": accept}

    async def call() -> None:
        async with stand.client.stream("POST", f"{stand.path}/exec", json=body, headers=headers) as answer:
            async for _ in answer.aiter_bytes():
                pass

    task = asyncio.create_task(call())
    beat = stand.folder / "beat"

    async def begun() -> bool:
        return beat.exists()

    await until(begun)
    task.cancel()
    await asyncio.wait([task])
    deadline = time.monotonic() + 5
    while (last := beat.read_bytes()) or True:
        await asyncio.sleep(0.5)
        if beat.read_bytes() == last:
            break
        assert time.monotonic() < deadline, "it lives on"
    await until(stand.unleased)


async def test_one_user_can_not_run_everything(stand: Stand, runtime: Runtime) -> None:
    await start(runtime, stand.ref)
    answers = await asyncio.gather(*(stand.exec("sleep 2") for _ in range(EXECS_PER_USER + 2)))
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [200] * EXECS_PER_USER + [429] * 2
    assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 429)
    assert (await stand.exec("true")).status_code == 200


async def test_logs_are_text_or_events(stand: Stand, runtime: Runtime) -> None:
    await start(runtime, stand.ref, "for n in 1 2 3; do echo line $n; sleep 0.2; done")
    headers = {**stand.owner.headers, "Accept": "text/event-stream"}
    seen = ""
    async with (
        asyncio.timeout(10),
        aconnect_sse(stand.client, "GET", f"{stand.path}/logs?follow=true", headers=headers) as source,
    ):
        async for event in source.aiter_sse():
            assert event.event == "log"
            seen += json.loads(event.data)["text"]
    assert seen == "line 1\nline 2\nline 3\n"
    tail = await stand.client.get(f"{stand.path}/logs?tail=1", headers=stand.owner.headers)
    assert tail.text == "line 3\n"
    assert tail.headers["content-type"].startswith("text/plain")


async def receive(terminal: websockets.ClientConnection, needle: bytes) -> bytes:
    got = b""
    async with asyncio.timeout(10):
        while needle not in got:
            frame = await terminal.recv()
            assert isinstance(frame, bytes), frame
            got += frame
    return got


async def test_a_terminal_is_a_shell_that_waits_for_its_client(stand: Stand, runtime: Runtime) -> None:
    await start(runtime, stand.ref)
    async with websockets.connect(await stand.terminal_url(cols=90, rows=30)) as terminal:
        first = json.loads(await terminal.recv())
        assert first["type"] == "session"
        assert await stand.leases() == ["terminal"]
        await terminal.send(b"stty size; X=kept\n")
        await receive(terminal, b"30 90")
        await terminal.send(json.dumps({"type": "resize", "cols": 100, "rows": 40}))
        await terminal.send("not json")
        await terminal.send(b"stty size\n")
        await receive(terminal, b"40 100")
    async with websockets.connect(await stand.terminal_url(session=first["session"])) as terminal:
        assert json.loads(await terminal.recv()) == first
        await receive(terminal, b"40 100")
        await terminal.send(b"echo still-$X; exit\n")
        await receive(terminal, b"still-kept")
        async with asyncio.timeout(10):
            async for _ in terminal:  # ends by itself when it is closed as it should be
                pass
    await until(stand.unleased)


async def test_terminals_close_when_the_access_behind_them_ends(
    stand: Stand, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "ACCESS_CHECK_S", 0.1)
    await start(runtime, stand.ref, IDLE)
    url = f"ws{str(stand.client.base_url).removeprefix('http')}{stand.path}/terminal"
    async with AsyncExitStack() as opened, asyncio.timeout(30):
        terminals = {}
        for kind, shown in (await passes(stand.client, stand.owner)).items():
            connecting = websockets.connect(f"{url}?{urlencode(shown.params)}", additional_headers=shown.headers)
            terminals[kind] = await opened.enter_async_context(connecting)
        for end, of in ((delete_key, "key"), (log_out, "session")):
            await asyncio.sleep(0.4)
            assert {terminal.close_code for terminal in terminals.values()} == {None}
            await end(stand.client, stand.owner, stand.database)
            for kind in (of, f"{of}'s ticket"):
                terminal = terminals.pop(kind)
                await terminal.wait_closed()
                assert (terminal.close_code, terminal.close_reason) == (4401, "unauthenticated")
        assert not terminals
    await until(stand.unleased)


async def test_a_terminal_closes_with_its_project(
    stand: Stand, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "ACCESS_CHECK_S", 0.1)
    await start(runtime, stand.ref, IDLE)
    async with websockets.connect(await stand.terminal_url()) as terminal, asyncio.timeout(20):
        await terminal.recv()
        async with stand.database.transaction() as session:
            await session.execute(text("DELETE FROM projects"))
        await terminal.wait_closed()
        assert (terminal.close_code, terminal.close_reason) == (4404, "not_found")


async def test_followed_logs_and_commands_end_with_the_callers_access(
    stand: Stand, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "ACCESS_CHECK_S", 0.1)
    await start(runtime, stand.ref, IDLE)
    headers = (await passes(stand.client, stand.owner))["key"].headers
    events = {**headers, "Accept": "text/event-stream"}
    command = {"command": "touch begun; sleep 1; while :; do date +%s%N > beat; sleep 0.1; done", "timeout_s": 60}

    async def read(method: str, path: str, **request: Any) -> None:
        async with stand.client.stream(method, stand.path + path, **request) as answer:
            assert answer.status_code == 200
            await answer.aread()  # a body cut short would raise

    async with asyncio.timeout(30):
        reading = [
            asyncio.create_task(read("GET", "/logs?follow=true", headers=headers)),
            asyncio.create_task(read("GET", "/logs?follow=true", headers=events)),
            asyncio.create_task(read("POST", "/exec", json=command, headers=events)),
        ]

        async def beats() -> bool:
            return (stand.folder / "beat").exists()

        await until(beats)
        assert not any(task.done() for task in reading)
        await delete_key(stand.client, stand.owner, stand.database)
        await asyncio.gather(*reading)

    async def still() -> bool:
        last = (stand.folder / "beat").read_bytes()
        await asyncio.sleep(0.5)
        return (stand.folder / "beat").read_bytes() == last

    await until(still)
    await until(stand.unleased)


async def test_consoles_are_the_owners_alone(stand: Stand, runtime: Runtime) -> None:
    await start(runtime, stand.ref)
    other = await register(stand.client)
    for method, path in (("GET", "/logs"), ("POST", "/exec")):
        answer = await stand.client.request(method, stand.path + path, json={"command": "true"}, headers=other.headers)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert (await stand.client.request(method, stand.path + path, json={"command": "true"})).status_code == 401
    own = stand.owner
    stand.owner = other
    with pytest.raises(websockets.InvalidStatus):
        async with websockets.connect(await stand.terminal_url()):
            pass
    stand.owner = own
    url = await stand.terminal_url()
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with websockets.connect(url, origin=websockets.Origin("https://evil.example.com")):
            pass
    assert refused.value.response.status_code == 403
    async with websockets.connect(
        await stand.terminal_url(), origin=websockets.Origin("https://console.example.com")
    ) as terminal:
        assert json.loads(await terminal.recv())["type"] == "session"
