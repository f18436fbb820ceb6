"""The agent's hand on a dev server: commands as everybody's, each restart once, and nothing of its owner's undone."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast

import pytest
from sqlalchemy import text
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from activities.dev_server_control import DevServerControls, ProjectDevServer
from activities.errors import ContainerMissingError
from activities.tools.dev_server import DevServer, DevServerArguments
from activities.tools.tool import ToolContext, ToolFailure, ToolResult
from storage import dev_server_commands, dev_servers
from storage.engine import Database
from storage.projects import ProjectRecord
from tests.storage.records import command, new_dev_server
from workflows.contracts.dev_servers import (
    DevServerAction,
    DevServerCommand,
    DevServerState,
    DevServerStep,
    StateChange,
)
from workflows.contracts.errors import ConflictError, NotFoundError
from workflows.contracts.names import ProjectRef

START, STOP, RESTART = DevServerAction.START, DevServerAction.STOP, DevServerAction.RESTART


class Workflows:
    """Takes commands as Temporal does, and serves each at once with `outcome`; None: not at all."""

    def __init__(self, database: Database, outcome: DevServerState | None = DevServerState.RUNNING) -> None:
        self.database = database
        self.outcome = outcome
        self.heard: list[tuple[int, str]] = []
        self.told = asyncio.Event()

    async def start_workflow(self, name: str, server: Any, **options: Any) -> None:
        newest: DevServerCommand = options["start_signal_args"][0]
        self.heard.append((newest.generation, newest.action))
        self.told.set()
        if self.outcome is not None:
            await self.serve(server.ref, newest.generation, self.outcome)

    async def serve(self, ref: ProjectRef, generation: int, state: DevServerState) -> None:
        failed = state == DevServerState.FAILED
        step = DevServerStep(user_id=ref.user_id, project_id=ref.project_id, generation=generation)
        reason = "The command ended with exit code 3." if failed else None
        change = StateChange(step=step, state=state, reason=reason, exit_code=3 if failed else None)
        async with self.database.transaction() as session:
            await dev_servers.record(session, change, "no such module" if failed else None)


class AwayTemporal(Workflows):
    """Temporal that doesn't answer; what it was to be told is told later, by the rows."""

    async def start_workflow(self, name: str, server: Any, **options: Any) -> None:
        self.told.set()
        raise RPCError("away", RPCStatusCode.UNAVAILABLE, b"")


class Notes:
    """What a call remembers."""

    def __init__(self) -> None:
        self.noted: list[Mapping[str, Any]] = []

    async def intent(self) -> Mapping[str, Any] | None:
        return self.noted[-1] if self.noted else None

    async def note_intent(self, intent: Mapping[str, Any]) -> None:
        self.noted.append(intent)


class Output:
    """A runtime of which only the server's output is asked."""

    def __init__(self, *pieces: bytes, missing: bool = False) -> None:
        self.pieces = pieces
        self.missing = missing
        self.asked: list[int] = []

    async def logs(self, ref: ProjectRef, *, tail: int = 200, follow: bool = False) -> AsyncIterator[bytes]:
        self.asked.append(tail)
        if self.missing:
            raise ContainerMissingError("there is none")
        for piece in self.pieces:
            yield piece


@pytest.fixture
async def project(database: Database) -> ProjectRecord:
    return await new_dev_server(database)


def control(workflows: Workflows, project: ProjectRecord, *, start_timeout_s: float = 60) -> ProjectDevServer:
    controls = DevServerControls(
        workflows.database, cast("Client", workflows), start_timeout_s=start_timeout_s, idle_grace_s=60
    )
    return controls.of(project.ref)


async def use(
    server: ProjectDevServer, action: str, *, notes: Notes | None = None, runtime: Output | None = None, lines: int = 50
) -> ToolResult:
    context = ToolContext(
        id="call",
        ref=server._ref,
        files=cast("Any", None),
        runtime=cast("Any", runtime),
        notes=cast("Any", notes or Notes()),
        output=cast("Any", None),
        dev_server=server,
        preview=cast("Any", None),
    )
    return await DevServer().run(context, DevServerArguments(action=cast("Any", action), lines=lines))


async def commands(database: Database) -> list[tuple[int, str]]:
    async with database.reading() as session:
        rows = await session.execute(text("SELECT generation, kind FROM operations ORDER BY generation"))
        return [(row.generation, row.kind) for row in rows]


async def test_a_start_is_waited_for_and_told(database: Database, project: ProjectRecord) -> None:
    server = control(Workflows(database), project)
    assert (await use(server, "status")).text == "The dev server's state: stopped"
    result = await use(server, "start")
    assert result == ToolResult("The dev server's state: running")
    assert await commands(database) == [(1, "start_dev_server")]


async def test_a_start_of_what_runs_or_starts_asks_for_nothing(database: Database, project: ProjectRecord) -> None:
    workflows = Workflows(database)
    server = control(workflows, project)
    await server.start()
    assert (await server.start()).state == DevServerState.RUNNING
    await command(database, project, RESTART)
    waiting = asyncio.create_task(server.start())
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await workflows.serve(project.ref, 2, DevServerState.RUNNING)
    assert (await waiting).state == DevServerState.RUNNING
    assert workflows.heard == [(1, START)]


async def test_a_failed_start_is_told_with_its_reason_and_last_lines(
    database: Database, project: ProjectRecord
) -> None:
    result = await use(control(Workflows(database, DevServerState.FAILED), project), "restart")
    assert result.failed
    assert result.text.splitlines() == [
        "The dev server's state: failed",
        "Reason: The command ended with exit code 3.",
        "Exit code: 3",
        "Its last output:",
        "no such module",
    ]


async def test_a_restart_that_is_tried_again_is_not_done_again(database: Database, project: ProjectRecord) -> None:
    workflows, notes = Workflows(database), Notes()
    server = control(workflows, project)
    await server.start()
    for _ in range(3):  # the worker died after the commit, and after the wait
        assert not (await use(server, "restart", notes=notes)).failed
    assert notes.noted == [{"after": 1}]
    assert await commands(database) == [(1, "start_dev_server"), (2, "restart_dev_server")]
    assert workflows.heard == [(1, START), (2, RESTART), (2, RESTART), (2, RESTART)]


async def test_a_restart_that_died_before_it_was_accepted_is_done(database: Database, project: ProjectRecord) -> None:
    workflows, notes = Workflows(database), Notes()
    await notes.note_intent({"after": 0})
    await use(control(workflows, project), "restart", notes=notes)
    assert await commands(database) == [(1, "restart_dev_server")]


async def test_attempts_at_the_same_moment_restart_once(database: Database, project: ProjectRecord) -> None:
    workflows, notes = Workflows(database), Notes()
    await notes.note_intent({"after": 0})
    server = control(workflows, project)
    views = await asyncio.gather(*(server.restart(cast("Any", notes)) for _ in range(8)))
    assert {view.state for view in views} == {DevServerState.RUNNING}
    assert await commands(database) == [(1, "restart_dev_server")]


async def test_a_second_restart_of_the_task_is_one_of_its_own(database: Database, project: ProjectRecord) -> None:
    server = control(Workflows(database), project)
    await use(server, "restart", notes=Notes())
    await use(server, "restart", notes=Notes())
    assert await commands(database) == [(1, "restart_dev_server"), (2, "restart_dev_server")]


async def test_what_somebody_stops_meanwhile_stays_stopped(database: Database, project: ProjectRecord) -> None:
    workflows, notes = Workflows(database, None), Notes()
    server = control(workflows, project)
    waiting = asyncio.create_task(use(server, "restart", notes=notes))
    async with asyncio.timeout(30):
        await workflows.told.wait()
    await command(database, project, STOP)
    with pytest.raises(ToolFailure, match="stopped meanwhile"):
        await waiting
    with pytest.raises(ToolFailure, match="stopped meanwhile"):
        await use(server, "restart", notes=notes)
    notes.noted = [{"after": 1}]  # it died before its restart was accepted, and the stop came then
    with pytest.raises(ToolFailure, match="stopped meanwhile"):
        await use(server, "restart", notes=notes)
    assert len(await commands(database)) == 2


async def test_a_later_start_serves_as_well(database: Database, project: ProjectRecord) -> None:
    workflows = Workflows(database, None)
    server = control(workflows, project)
    waiting = asyncio.create_task(server.start())
    async with asyncio.timeout(30):
        await workflows.told.wait()
    await command(database, project, START)
    await workflows.serve(project.ref, 2, DevServerState.RUNNING)
    assert (await waiting).state == DevServerState.RUNNING


async def test_a_command_stands_while_temporal_is_away(database: Database, project: ProjectRecord) -> None:
    workflows = AwayTemporal(database)
    waiting = asyncio.create_task(control(workflows, project).start())
    async with asyncio.timeout(30):
        await workflows.told.wait()
    await workflows.serve(project.ref, 1, DevServerState.RUNNING)
    assert (await waiting).state == DevServerState.RUNNING


async def test_a_wait_has_an_end(database: Database, project: ProjectRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activities.dev_server_control._MARGIN_S", 0.0)
    with pytest.raises(ToolFailure, match=r"within 0\.5 s"):
        await control(Workflows(database, None), project, start_timeout_s=0.5).start()


async def test_projects_that_can_not_run_say_so(database: Database, project: ProjectRecord) -> None:
    server = control(Workflows(database), project)
    async with database.transaction() as session:
        await session.execute(text("UPDATE projects SET state = 'failed', state_reason = 'Why.'"))
    for action in ("start", "restart"):
        with pytest.raises(ConflictError):
            await use(server, action)
    gone = control(Workflows(database), project)
    gone._ref = ProjectRef(project.user_id, project.id + 1)
    for action in ("status", "start", "restart"):
        with pytest.raises(NotFoundError):
            await use(gone, action)


async def test_its_last_lines_are_shown_plainly_and_bounded(database: Database, project: ProjectRecord) -> None:
    server = control(Workflows(database), project)
    runtime = Output(b"\x1b[32mVITE\x1b[0m re", b"ady\n", b"\xff\0\n")
    assert (await use(server, "logs", runtime=runtime, lines=7)).text == "VITE ready\n\ufffd\ufffd"
    assert runtime.asked == [7]
    long = (await use(server, "logs", runtime=Output(*[b"x" * 1000 + b"\n"] * 100, b"the end"))).text
    assert len(long) <= 16_000
    assert long.startswith("[Only the last 15,000 bytes")
    assert long.endswith("the end")
    assert "hasn't been started" in (await use(server, "logs", runtime=Output(missing=True))).text
    assert (await use(server, "logs", runtime=Output())).text == "It hasn't written anything."


def test_only_its_commands_have_effects() -> None:
    effects = {
        action: DevServer().has_effects(DevServerArguments(action=cast("Any", action)))
        for action in ("status", "logs", "start", "restart")
    }
    assert effects == {"status": False, "logs": False, "start": True, "restart": True}


async def test_the_first_restart_after_a_generation_is_found(database: Database, project: ProjectRecord) -> None:
    for action in (START, RESTART, STOP, RESTART):
        await command(database, project, action)
    async with database.reading() as session:
        found = [await dev_server_commands.restarted_after(session, project.id, after) for after in range(5)]
    assert found == [2, 2, 4, 4, None]
