import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from storage import event_log, projects
from storage.engine import Database, connect
from storage.event_batcher import EventBatcher
from storage.event_listener import EventListener
from storage.event_log import EventReader
from storage.migrate import migrate
from tests.postgres import PostgresServer
from tests.storage.records import new_project
from workflows.contracts.errors import NotFoundError
from workflows.contracts.events import Event, EventType, NewEvent


@pytest.fixture
async def listener(database: Database) -> AsyncIterator[EventListener]:
    listening = EventListener(database.dsn)
    yield listening
    await listening.close()


@pytest.fixture
def reader(database: Database, listener: EventListener) -> EventReader:
    return EventReader(database, listener)


@pytest.fixture
async def batcher(database: Database) -> AsyncIterator[EventBatcher]:
    batching = EventBatcher(database)
    yield batching
    await batching.close()


def changed(project_id: int, n: int, **data: Any) -> NewEvent:
    return NewEvent(project_id=project_id, type=EventType.FILE_CHANGED, data={"n": n, **data})


def state(project_id: int, word: str) -> NewEvent:
    return NewEvent(project_id=project_id, type=EventType.PROJECT_STATE, data={"state": word})


async def append(database: Database, *events: NewEvent) -> list[Event]:
    async with database.transaction() as session:
        written = await event_log.write(session, [event_log.encode(event) for event in events])
    return [event for event in written if event is not None]


async def take(reader: EventReader, project_id: int, count: int, **options: Any) -> list[Event]:
    taken: list[Event] = []
    async with asyncio.timeout(60), aclosing(reader.follow(project_id, **options)) as events:
        async for event in events:
            taken.append(event)
            if len(taken) == count:
                break
    return taken


def numbers(events: list[Event]) -> list[int]:
    return [event.seq for event in events]


async def delete(database: Database, project_id: int) -> None:
    async with database.transaction() as session:
        await projects.delete(session, project_id)


async def test_append_numbers_each_project_from_one_in_the_order_given(database: Database) -> None:
    a, b = await new_project(database), await new_project(database)
    first = await append(database, changed(b, 0), changed(a, 1), changed(b, 2))
    second = await append(database, changed(a, 3))

    assert [(event.project_id, event.seq, event.data["n"]) for event in first] == [(b, 1, 0), (a, 1, 1), (b, 2, 2)]
    assert numbers(second) == [2]
    assert second[0].at.tzinfo == UTC
    assert second[0].at > first[1].at


async def test_what_is_rolled_back_leaves_no_gap(database: Database) -> None:
    project = await new_project(database)

    async def fail() -> None:
        async with database.transaction() as session:
            await event_log.write(session, [event_log.encode(changed(project, 0))])
            raise LookupError

    with pytest.raises(LookupError):
        await fail()

    assert numbers(await append(database, changed(project, 1))) == [1]


async def test_append_to_a_project_that_is_gone_writes_nothing(database: Database) -> None:
    project = await new_project(database)
    with pytest.raises(NotFoundError):
        async with database.transaction() as session:
            event_log.append(session, [changed(project, 0), changed(project + 1, 0)])

    assert numbers(await append(database, changed(project, 1))) == [1]


async def test_live_and_stored_events_are_the_same(database: Database, reader: EventReader) -> None:
    project, task = await new_project(database), str(uuid4())
    event = NewEvent(
        project_id=project, type=EventType.FILE_CHANGED, task_id=task, data={"path": 'a "ü" \\ 🎈', "x": 1.5}
    )
    live = asyncio.create_task(take(reader, project, 2))
    await asyncio.sleep(0.2)
    written = [*await append(database, event), *await append(database, event)]

    assert await live == written
    assert await take(reader, project, 2) == written
    assert written[0].task_id == task
    assert [event.model_dump_json() for event in live.result()] == [event.model_dump_json() for event in written]


async def test_what_postgres_cannot_store_is_replaced(database: Database, reader: EventReader) -> None:
    project = await new_project(database)
    await append(database, changed(project, 0, nul="a\0b", half="x\udce9y", pair="🎈", deep=[{"k\0": "\ud800"}]))
    [event] = await take(reader, project, 1)

    assert event.data == {"n": 0, "nul": "a�b", "half": "x�y", "pair": "🎈", "deep": [{"k�": "�"}]}


async def test_a_reader_resumes_after_since_and_sees_only_what_it_asked_for(
    database: Database, reader: EventReader
) -> None:
    project, task = await new_project(database), str(uuid4())
    await append(database, changed(project, 1), state(project, "ready"), changed(project, 3))
    of_task = asyncio.create_task(take(reader, project, 1, task_id=task))
    states = asyncio.create_task(take(reader, project, 2, types={EventType.PROJECT_STATE}))
    await asyncio.sleep(0.2)
    await append(database, changed(project, 4).model_copy(update={"task_id": task}), state(project, "failed"))

    assert numbers(await of_task) == [4]
    assert numbers(await states) == [2, 5]
    assert numbers(await take(reader, project, 2, since=3)) == [4, 5]


async def test_events_larger_than_a_notification_arrive(database: Database, reader: EventReader) -> None:
    project = await new_project(database)
    live = asyncio.create_task(take(reader, project, 3))
    await asyncio.sleep(0.2)
    for n, size in enumerate([10, 9_000, 100_000]):
        await append(database, changed(project, n, text="x" * size))

    assert [len(event.data["text"]) for event in await live] == [10, 9_000, 100_000]


async def test_a_notification_around_its_limit_is_told_or_pointed_to(database: Database, reader: EventReader) -> None:
    project, sizes = await new_project(database), range(7_600, 7_960, 6)
    live = asyncio.create_task(take(reader, project, len(sizes)))
    for n, size in enumerate(sizes):
        await append(database, changed(project, n, text="x" * size))

    assert [len(event.data["text"]) for event in await live] == list(sizes)


async def test_catching_up_reads_page_by_page(
    database: Database, reader: EventReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "_PAGE", 7)
    project = await new_project(database)
    await append(database, *(changed(project, n) for n in range(1, 22)))

    assert numbers(await take(reader, project, 21)) == list(range(1, 22))


async def test_twenty_writers_and_readers_see_every_event_once_and_in_order(
    database: Database, reader: EventReader, batcher: EventBatcher
) -> None:
    logs = [await new_project(database) for _ in range(4)]
    each = 25

    async def write(writer: int) -> None:
        for n in range(each):
            events = [changed(logs[(writer + k) % 4], n, writer=writer) for k in range(2)]
            if writer % 2:
                await append(database, *events)
            else:
                await asyncio.gather(*(batcher.put(event) for event in events))

    total = 20 * each * 2 // 4
    following = [asyncio.create_task(take(reader, logs[k % 4], total)) for k in range(20)]
    await asyncio.gather(*(write(writer) for writer in range(20)))
    seen = await asyncio.gather(*following)

    for k, events in enumerate(seen):
        assert numbers(events) == list(range(1, total + 1))
        assert events == seen[k % 4], "all readers of a project see the same"
        assert all(earlier.at <= later.at for earlier, later in pairwise(events))
        by_writer: defaultdict[int, list[int]] = defaultdict(list)
        for event in events:
            by_writer[event.data["writer"]].append(event.data["n"])
        assert all(order == list(range(each)) for order in by_writer.values())
        assert len(by_writer) == 10


async def test_a_listener_whose_connection_is_cut_loses_nothing(database: Database, reader: EventReader) -> None:
    project = await new_project(database)
    live = asyncio.create_task(take(reader, project, 60))
    admin = await connect(database.dsn)
    cuts = 0
    for n in range(60):
        await append(database, changed(project, n))
        if n in (20, 40):
            await asyncio.sleep(0.3)
            cuts += await admin.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
                " AND datname = current_database()"
            )
    await admin.close()

    assert numbers(await live) == list(range(1, 61))
    assert cuts == 2


async def test_a_gap_in_what_is_heard_is_filled_from_the_table(database: Database, reader: EventReader) -> None:
    project = await new_project(database)
    live = asyncio.create_task(take(reader, project, 2))
    await asyncio.sleep(0.2)
    async with database.transaction() as session:
        await session.execute(text("UPDATE event_logs SET last_seq = 1"))
        await session.execute(
            text("INSERT INTO events (project_id, seq, type, data) VALUES (:id, 1, 'file.changed', '{}')"),
            {"id": project},
        )
    await append(database, changed(project, 2))

    assert numbers(await live) == [1, 2]


async def test_a_slow_reader_falls_back_to_the_table(database: Database, reader: EventReader) -> None:
    project = await new_project(database)
    seen: list[int] = []
    async with asyncio.timeout(60), aclosing(reader.follow(project)) as events:
        await append(database, changed(project, 0))
        async for event in events:
            seen.append(event.seq)
            if event.seq == 1:
                for n in range(300):
                    await append(database, changed(project, n))
                await asyncio.sleep(0.2)
            if event.seq == 301:
                break

    assert seen == list(range(1, 302))


async def test_a_deleted_project_ends_its_readers_after_its_last_state(database: Database, reader: EventReader) -> None:
    project = await new_project(database)
    await append(database, changed(project, 1))
    live = asyncio.create_task(take(reader, project, -1))
    await asyncio.sleep(0.2)
    await append(database, state(project, "deleting"))
    await delete(database, project)

    assert [(event.seq, event.type) for event in await live] == [(1, "file.changed"), (2, "project.state")]


async def test_a_reader_too_slow_for_a_deletion_still_gets_the_last_state(
    database: Database, reader: EventReader
) -> None:
    project = await new_project(database)
    await append(database, changed(project, 1))
    seen: list[Event] = []
    async with asyncio.timeout(30), aclosing(reader.follow(project)) as events:
        async for event in events:
            seen.append(event)
            if event.seq == 1:
                for n in range(260):
                    await append(database, changed(project, n))
                await append(database, state(project, "deleting"))
                await delete(database, project)
                await asyncio.sleep(0.3)

    assert (seen[-1].seq, seen[-1].data) == (262, {"state": "deleting"})


async def test_following_a_project_that_is_not_there_ends_at_once(reader: EventReader) -> None:
    assert await take(reader, 404, -1) == []


async def test_waiting_readers_hold_no_session(database_url: str) -> None:
    database = Database(database_url, pool_size=1)
    listener = EventListener(database_url)
    reader = EventReader(database, listener)
    project = await new_project(database)
    following = [asyncio.create_task(take(reader, project, 1)) for _ in range(10)]
    await asyncio.sleep(0.2)
    await append(database, changed(project, 1))

    assert [numbers(events) for events in await asyncio.gather(*following)] == [[1]] * 10
    await listener.close()
    await database.close()


async def test_a_killed_postgres_doubles_and_loses_nothing(own_postgres: PostgresServer) -> None:
    await migrate(own_postgres.url())
    database = Database(own_postgres.url())
    listener = EventListener(database.dsn)
    batcher = EventBatcher(database)
    logs = [await new_project(database) for _ in range(4)]
    total = 5 * 40
    reader = EventReader(database, listener)
    following = [asyncio.create_task(take(reader, project, total)) for project in logs]

    async def write(writer: int) -> None:
        for n in range(40):
            await batcher.put(changed(logs[writer % 4], n, writer=writer))

    writing = [asyncio.create_task(write(writer)) for writer in range(20)]
    for _ in range(2):
        await asyncio.sleep(0.4)
        await own_postgres.restart_after_kill(0.2)
    await asyncio.gather(*writing)

    for events in await asyncio.gather(*following):
        assert numbers(events) == list(range(1, total + 1))
        assert len({(event.data["writer"], event.data["n"]) for event in events}) == total
    await batcher.close()
    await listener.close()
    await database.close()
