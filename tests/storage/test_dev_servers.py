"""Commands in their order, transitions told once, and no deadlock between those who write about one server."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest
from sqlalchemy import text

from storage import dev_servers, event_log, leases, operations, projects
from storage.dev_servers import DevServerRecord
from storage.engine import Database
from storage.operations import OperationRecord
from storage.projects import ProjectRecord
from tests.storage.records import command, log_of, new_dev_server
from workflows.contracts.dev_servers import (
    DevServerAction,
    DevServerState,
    DevServerStep,
    LeaseKind,
    StateChange,
)
from workflows.contracts.events import EventType, NewEvent
from workflows.contracts.projects import ProjectState

START, STOP, RESTART = DevServerAction.START, DevServerAction.STOP, DevServerAction.RESTART
STOPPED, STARTING, RUNNING = DevServerState.STOPPED, DevServerState.STARTING, DevServerState.RUNNING
STOPPING, FAILED = DevServerState.STOPPING, DevServerState.FAILED


async def stored(database: Database, project: ProjectRecord) -> DevServerRecord:
    async with database.transaction() as session:
        server = await dev_servers.get(session, project.id)
    assert server is not None
    return server


async def reload(database: Database, operation: OperationRecord) -> OperationRecord:
    async with database.transaction() as session:
        found = await operations.get(session, operation.id, user_id=operation.user_id)
    assert found is not None
    return found


async def outcome(database: Database, operation: OperationRecord) -> tuple[str, str | None]:
    now = await reload(database, operation)
    return now.state, now.error["code"] if now.error else None


def step(project: ProjectRecord, generation: int) -> DevServerStep:
    return DevServerStep(user_id=project.user_id, project_id=project.id, generation=generation)


async def record(
    database: Database,
    project: ProjectRecord,
    generation: int,
    state: DevServerState,
    *,
    reason: str | None = None,
    code: str | None = None,
    exit_code: int | None = None,
) -> bool:
    change = StateChange(step=step(project, generation), state=state, reason=reason, code=code, exit_code=exit_code)
    async with database.transaction() as session:
        return await dev_servers.record(session, change)


async def states(database: Database, project: ProjectRecord) -> list[str]:
    return [data["state"] for _, kind, data in await log_of(database, project.id) if kind == "dev_server.state"]


async def test_twenty_commands_at_once_get_twenty_generations(database: Database) -> None:
    project = await new_dev_server(database)
    actions = [random.choice([START, STOP, RESTART]) for _ in range(20)]
    accepted = await asyncio.gather(*(command(database, project, action) for action in actions))

    server = await stored(database, project)
    assert sorted(operation.generation or 0 for operation in accepted) == list(range(1, 21))
    assert (server.generation, server.observed_generation) == (20, 0)
    newest = next(operation for operation in accepted if operation.generation == 20)
    assert newest.kind == f"{server.action}_dev_server"
    log = await log_of(database, project.id)
    assert [seq for seq, _, _ in log] == list(range(1, len(log) + 1))
    assert all(earlier != later for earlier, later in pairwise(await states(database, project)))


@pytest.mark.parametrize(
    ("found", "action", "shown"),
    [
        (STOPPED, START, STARTING),
        (STOPPED, STOP, STOPPED),
        (STOPPED, RESTART, STARTING),
        (STARTING, START, STARTING),
        (STARTING, STOP, STOPPING),
        (STARTING, RESTART, STARTING),
        (RUNNING, START, RUNNING),
        (RUNNING, STOP, STOPPING),
        (RUNNING, RESTART, STARTING),
        (STOPPING, START, STARTING),
        (STOPPING, STOP, STOPPING),
        (STOPPING, RESTART, STARTING),
        (FAILED, START, STARTING),
        (FAILED, STOP, FAILED),
        (FAILED, RESTART, STARTING),
    ],
)
async def test_a_command_shows_at_once_what_it_means(
    database: Database, found: DevServerState, action: DevServerAction, shown: DevServerState
) -> None:
    project = await new_dev_server(database)
    await record(database, project, 0, found, reason="before", exit_code=3)
    before = await log_of(database, project.id)
    await command(database, project, action)

    server = await stored(database, project)
    assert server.state == shown
    if shown == found:
        assert (server.reason, server.exit_code) == ("before", 3)
        assert await log_of(database, project.id) == before
    else:
        assert (server.reason, server.exit_code) == (None, None)
        assert (await states(database, project))[-1] == shown


async def test_a_superseded_transition_changes_nothing_and_tells_nothing(database: Database) -> None:
    project = await new_dev_server(database)
    start = await command(database, project, START)
    stop = await command(database, project, STOP)
    before = await stored(database, project), await log_of(database, project.id)

    for state in DevServerState:
        assert not await record(database, project, 1, state)
    assert (await stored(database, project), await log_of(database, project.id)) == before
    assert await outcome(database, start) == ("running", None)
    assert await outcome(database, stop) == ("running", None)


async def test_the_same_transition_is_told_once(database: Database) -> None:
    project = await new_dev_server(database)
    await command(database, project, START)
    results = await asyncio.gather(*(record(database, project, 1, RUNNING) for _ in range(5)))

    assert results == [True] * 5
    assert await states(database, project) == ["starting", "running"]


async def test_since_tells_when_the_state_changed_not_its_reason(database: Database) -> None:
    project = await new_dev_server(database)
    await record(database, project, 0, RUNNING)
    began = (await stored(database, project)).since
    await record(database, project, 0, RUNNING, reason="It sleeps soon.")

    assert (await stored(database, project)).since == began
    assert await states(database, project) == ["running", "running"]


@pytest.mark.parametrize(
    ("state", "starts", "stops"),
    [
        (RUNNING, ("succeeded", None), ("failed", "superseded")),
        (STOPPED, ("failed", "superseded"), ("succeeded", None)),
        (FAILED, ("failed", "crashed"), ("failed", "superseded")),
        (STARTING, ("running", None), ("running", None)),
        (STOPPING, ("running", None), ("running", None)),
    ],
)
async def test_a_transition_ends_all_operations_that_it_decides(
    database: Database, state: DevServerState, starts: tuple[str, str | None], stops: tuple[str, str | None]
) -> None:
    project, other = await new_dev_server(database), await new_dev_server(database)
    ours = [await command(database, project, action) for action in (START, STOP, RESTART, STOP, START)]
    theirs = await command(database, other, START)
    assert await record(database, project, 5, state, reason="why", code="crashed")

    expected = [starts, stops, starts, stops, starts]
    assert [await outcome(database, operation) for operation in ours] == expected
    assert await outcome(database, theirs) == ("running", None)
    assert (await stored(database, project)).observed_generation == 5


async def test_an_ended_operation_never_changes_again(database: Database) -> None:
    project = await new_dev_server(database)
    first = await command(database, project, START)
    await record(database, project, 1, RUNNING)
    ended = await reload(database, first)
    await command(database, project, STOP)
    await record(database, project, 2, STOPPED)
    async with database.transaction() as session:
        await dev_servers.set_stage(session, project.id, 2, "probing")
        await operations.finish(session, first.id, {"code": "late", "detail": "", "retryable": False})
        await operations.set_stage(session, first.id, "late")
        await operations.abandon(session, project.id, but=first.id)

    assert await reload(database, first) == ended
    assert (ended.state, ended.error, ended.ended_at is not None) == ("succeeded", None, True)


async def test_a_stage_is_told_once_and_only_while_it_starts(database: Database) -> None:
    project = await new_dev_server(database)
    operation = await command(database, project, START)

    async def tell(generation: int, stage: str) -> bool:
        async with database.transaction() as session:
            return await dev_servers.set_stage(session, project.id, generation, stage)

    assert [await tell(1, stage) for stage in ("creating", "creating", "starting")] == [True, False, True]
    assert (await reload(database, operation)).stage == "starting"
    await record(database, project, 1, RUNNING)
    assert not await tell(1, "probing")
    await command(database, project, RESTART)
    assert not await tell(1, "probing")
    assert await tell(2, "starting")
    told = [data["stage"] for _, kind, data in await log_of(database, project.id) if kind == "dev_server.stage"]
    assert told == ["creating", "starting", "starting"]


async def test_a_start_that_serves_later_commands_tells_its_stages_for_them(database: Database) -> None:
    project = await new_dev_server(database)

    async def tell(generation: int, stage: str) -> bool:
        async with database.transaction() as session:
            return await dev_servers.set_stage(session, project.id, generation, stage)

    await command(database, project, START)
    assert await tell(1, "starting")
    again = await command(database, project, START)
    assert await tell(1, "probing")
    assert (await reload(database, again)).stage == "probing"

    restart = await command(database, project, RESTART)
    assert not await tell(1, "creating")  # that start will be undone
    assert (await reload(database, restart)).stage is None
    assert [await tell(3, stage) for stage in ("starting", "probing")] == [True, True]

    # A restart that begins with what was told last: told to its own followers, and not twice to the log's.
    another = await command(database, project, RESTART)
    assert not await tell(4, "probing")
    assert (await reload(database, another)).stage == "probing"
    await command(database, project, STOP)
    await command(database, project, START)
    assert await tell(6, "probing")
    events = [(kind, *data.values()) for _, kind, data in await log_of(database, project.id)]
    assert [event[1] for event in events if event[0].startswith("dev_server.")] == [
        "starting", "starting", "probing", "starting", "probing", "stopping", "starting", "probing",
    ]  # fmt: skip


async def test_what_nobody_serves_is_found_after_its_grace(database: Database) -> None:
    unheard, moving, resting, going = [await new_dev_server(database) for _ in range(4)]
    for project in (unheard, moving, resting, going):
        await command(database, project, START)
    for project, state in ((moving, RUNNING), (resting, STOPPED)):
        await record(database, project, 1, state)

    async def found(older_than_s: float) -> tuple[set[int], set[int]]:
        async with database.transaction() as session:
            lost = await dev_servers.unobserved(session, older_than_s=older_than_s, limit=10)
            busy = await dev_servers.in_motion(session, older_than_s=older_than_s, limit=10)
        assert {standing.command.generation for standing in [*lost, *busy]} <= {1}
        return {standing.ref.project_id for standing in lost}, {standing.ref.project_id for standing in busy}

    assert await found(60) == (set(), set())
    async with database.transaction() as session:
        await projects.set_state(session, going.id, ProjectState.DELETING)
        ago = "now() - interval '2 min'"
        await session.execute(text(f"UPDATE dev_servers SET since = {ago}, commanded_at = {ago}"))
    assert await found(60) == ({unheard.id}, {unheard.id, moving.id})


class Writers:
    """All who write about servers, each as the service does it."""

    def __init__(self, database: Database, servers: list[ProjectRecord]) -> None:
        self.database = database
        self.servers = servers

    async def accept(self, project: ProjectRecord) -> None:
        async with self.database.transaction() as session:
            if await projects.lock(session, project.id) is not None:
                await dev_servers.accept(session, project.id, random.choice([START, STOP, RESTART]))

    async def record(self, project: ProjectRecord) -> None:
        async with self.database.transaction() as session:
            server = await dev_servers.get(session, project.id)
            at = step(project, server.generation if server else 0)
            if await dev_servers.record(session, StateChange(step=at, state=random.choice(list(DevServerState)))):
                await leases.renew(session, project.id, LeaseKind.START, "start", 60)

    async def append(self, _: ProjectRecord) -> None:
        """To the logs of all at once, in any order."""
        data = {"path": "a", "op": "modified", "etag": "1", "by": "user"}
        chosen = random.sample(self.servers, len(self.servers))
        news = [NewEvent(project_id=project.id, type=EventType.FILE_CHANGED, data=data) for project in chosen]
        async with self.database.transaction() as session:
            for project in self.servers:
                await leases.renew(session, project.id, LeaseKind.FILES, "user", 60)
            await event_log.write(session, [event_log.encode(event) for event in news])

    async def renew(self, project: ProjectRecord) -> None:
        async with self.database.transaction() as session:
            await leases.renew(session, project.id, LeaseKind.PREVIEW, "visitors", random.choice([-1, 60]))

    async def look(self, project: ProjectRecord) -> None:
        async with self.database.transaction() as session:
            await leases.held(session, project.id)
            await dev_servers.set_stage(session, project.id, 10_000, random.choice(["creating", "starting"]))

    async def delete(self, project: ProjectRecord) -> None:
        async with self.database.transaction() as session:
            await projects.delete(session, project.id)


async def test_writers_of_every_kind_at_once_never_deadlock(database: Database) -> None:
    """A deadlock would surface as `UnavailableError`, as every lock that isn't had in time."""
    servers = [await new_dev_server(database) for _ in range(4)]
    writers = Writers(database, servers)

    async def work(write: Callable[[ProjectRecord], Awaitable[None]]) -> None:
        for _ in range(30):
            await write(random.choice(servers))

    async def delete_two() -> None:
        for project in servers[2:]:
            await asyncio.sleep(0.3)
            await writers.delete(project)

    kinds = [writers.accept, writers.record, writers.append, writers.renew, writers.look]
    async with asyncio.timeout(60):
        await asyncio.gather(*(work(write) for write in kinds * 2), delete_two())

    for project in servers[:2]:
        log = await log_of(database, project.id)
        assert [seq for seq, _, _ in log] == list(range(1, len(log) + 1))
        assert len(log) > 60
    for project in servers[2:]:
        assert await log_of(database, project.id) == []
