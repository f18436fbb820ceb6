"""The durable event log: one append-only sequence per project, gapless from 1, in commit order.

Numbers are given under the lock of the log's row, so an event is visible only after all before it. Each append tells
the listeners (`storage/event_listener.py`) with the events inside the notification, or with a pointer when they
don't fit into one; what a notification lost is in the table, so readers miss nothing.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from storage.engine import Database, before_commit
from storage.event_listener import EVENTS_CHANNEL, EventListener, Subscription
from storage.statements import Statement
from storage.tables import EventLogRow
from workflows.contracts.errors import NotFoundError, UnavailableError
from workflows.contracts.events import Event, EventFence, EventType, NewEvent

_NOTE_LIMIT: Final = 7900
"""Bytes that fit into one notification; Postgres' own limit is 8,000."""
_PAGE: Final = 500
_RETRY_S: Final = 0.5
_PENDING: Final = "studio.events"

_AS_JSON: Final = """json_agg(json_build_object(
    'seq', seq, 'type', type, 'task_id', task_id, 'data', data,
    'at', to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')) ORDER BY seq)"""

# clock_timestamp, not now(): it is read under the lock, so times ascend with the numbers.
_LOCKED = """
    SELECT project_id FROM event_logs WHERE project_id = ANY(CAST(:project_ids AS bigint[]))
    ORDER BY project_id FOR NO KEY UPDATE
"""
# Numbers and writes what is in `input` (project_id, type, task_id, data, n), and tells of it; the logs are `locked`.
_WRITE = f"""
ranked AS MATERIALIZED (
    SELECT *, row_number() OVER (PARTITION BY project_id ORDER BY n) AS rank FROM input
), raised AS (
    UPDATE event_logs SET last_seq = last_seq + counted.n
    FROM locked JOIN (SELECT project_id, count(*) AS n FROM input GROUP BY project_id) AS counted USING (project_id)
    WHERE event_logs.project_id = locked.project_id
    RETURNING event_logs.project_id, last_seq - counted.n AS base
), inserted AS (
    INSERT INTO events (project_id, seq, task_id, type, data, at)
    SELECT project_id, base + rank, task_id, type, CAST(data AS jsonb), clock_timestamp()
    FROM ranked JOIN raised USING (project_id)
    RETURNING project_id, seq, task_id, type, data, at
), notes AS (
    SELECT project_id, {_AS_JSON}::text AS body FROM inserted GROUP BY project_id
), told AS MATERIALIZED (
    SELECT pg_notify('{EVENTS_CHANNEL}', project_id || ' ' ||
                     CASE WHEN octet_length(body) < {_NOTE_LIMIT} - 20 THEN body ELSE '' END)
    FROM notes
)"""  # noqa: S608 -- only constants of this module are put in
_APPEND: Final = text(f"""
WITH input AS MATERIALIZED (
    SELECT * FROM unnest(CAST(:project_ids AS bigint[]), CAST(:types AS text[]), CAST(:task_ids AS uuid[]),
                         CAST(:data AS text[])) WITH ORDINALITY AS given (project_id, type, task_id, data, n)
), locked AS MATERIALIZED ({_LOCKED}), {_WRITE}
SELECT project_id, seq, task_id, type, data, at, (SELECT count(*) FROM told) FROM inserted ORDER BY project_id, seq
""")  # noqa: S608 -- as above

# A batch in one round trip. The writer's row comes first: it waits for a transaction of ours that may still be open on
# a connection that we have lost, and which either commits, and the number is taken, or is rolled back, and it is ours.
# Fences are locked as they are read, by which Postgres reads the newest there are: who claims holds the log before.
_WRITE_BATCH: Final = Statement(
    text(f"""
WITH claimed AS (
    INSERT INTO event_writers (id, batch) VALUES (CAST(:writer AS uuid), CAST(:batch AS bigint))
    ON CONFLICT (id) DO UPDATE SET batch = excluded.batch, at = now() WHERE event_writers.batch < excluded.batch
    RETURNING batch
), given AS MATERIALIZED (
    SELECT given.* FROM claimed, unnest(
        CAST(:project_ids AS bigint[]), CAST(:types AS text[]), CAST(:task_ids AS uuid[]), CAST(:data AS text[]),
        CAST(:subjects AS text[]), CAST(:tokens AS uuid[])
    ) WITH ORDINALITY AS given (project_id, type, task_id, data, subject, token, n)
), locked AS MATERIALIZED (
    SELECT project_id FROM event_logs WHERE project_id IN (SELECT project_id FROM given)
    ORDER BY project_id FOR NO KEY UPDATE
), standing AS MATERIALIZED (
    SELECT given.n FROM locked JOIN given USING (project_id)
    JOIN event_fences USING (task_id, subject, token) FOR SHARE OF event_fences
), input AS MATERIALIZED (
    SELECT * FROM given WHERE token IS NULL OR n IN (SELECT n FROM standing)
), {_WRITE}
SELECT (SELECT array_agg(n) FROM input), (SELECT array_agg(project_id) FROM raised), (SELECT count(*) FROM told)
FROM claimed
""")  # noqa: S608 -- as above
)

# The log's row goes first: a batch of events that is being written would otherwise meet the project's deletion halfway.
_END: Final = text(f"""
WITH ended AS (DELETE FROM event_logs WHERE project_id = CAST(CAST(:project_id AS text) AS bigint))
SELECT pg_notify('{EVENTS_CHANNEL}', CAST(:project_id AS text) || ' ' || json_build_object('last', coalesce((
    SELECT {_AS_JSON} FROM (
        SELECT * FROM events WHERE project_id = CAST(:project_id AS bigint) AND type = '{EventType.PROJECT_STATE}'
        AND octet_length(data::text) < {_NOTE_LIMIT} - 500
        ORDER BY seq DESC LIMIT 1) AS final), '[]')))
""")  # noqa: S608 -- only constants of this module are put in

# One snapshot for the rows and for how far the log goes: rows may be missing (pruned, filtered), numbers never return.
_READ: Final = text("""
SELECT event_logs.last_seq, page.seq, page.task_id, page.type, page.data, page.at
FROM event_logs LEFT JOIN LATERAL (
    SELECT * FROM events
    WHERE project_id = event_logs.project_id AND seq > :since
      AND (CAST(:types AS text[]) IS NULL OR type = ANY(CAST(:types AS text[])))
      AND (CAST(:task_id AS uuid) IS NULL OR task_id = CAST(:task_id AS uuid))
    ORDER BY seq LIMIT :limit
) AS page ON true
WHERE event_logs.project_id = :project_id ORDER BY page.seq
""")


_FORGET_WRITERS: Final = text("DELETE FROM event_writers WHERE at < now() - interval '7 days'")


@dataclass(frozen=True)
class EncodedEvent:
    """An event whose data is known to be storable, as JSON text. `fence`: looked at by the batcher alone."""

    project_id: int
    type: str
    task_id: UUID | None
    data: str
    fence: EventFence | None = None


def encode(event: NewEvent) -> EncodedEvent:
    """The event ready to be written. Raises `ValueError` for data that is no JSON.

    Postgres stores neither NUL nor lone surrogates, which commands print and file names hold: both become `�`.
    """
    data = json.dumps(event.data, allow_nan=False)
    if "\\u0000" in data or "\\ud" in data:
        data = json.dumps(storable(event.data), allow_nan=False)
    task_id = UUID(event.task_id) if event.task_id else None
    return EncodedEvent(event.project_id, event.type, task_id, data, event.fence)


def storable(value: Any) -> Any:  # noqa: ANN401 -- JSON of any shape
    """The value as Postgres can store it, see `encode`."""
    match value:
        case str():
            return value.replace("\0", "�").encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        case dict():
            return {storable(key): storable(item) for key, item in value.items()}
        case list() | tuple():
            return [storable(item) for item in value]
        case _:
            return value


async def begin(session: AsyncSession, project_id: int) -> None:
    """Make the log of a new project, in the transaction that makes the project."""
    session.add(EventLogRow(project_id=project_id))
    await session.flush()


def append(session: AsyncSession, events: Sequence[NewEvent]) -> None:
    """Write events at the end of the caller's `Database.transaction`, in the order given; readers see them then.

    Only then the projects' logs are locked: what streams tell of the same projects waits for a round trip, not for a
    transaction. It fails with `NotFoundError` when a project is gone. Raises `ValueError` for data that is no JSON.
    """
    pending: list[EncodedEvent] | None = session.info.get(_PENDING)
    if pending is None:
        pending = session.info[_PENDING] = []
        before_commit(session, _write_pending)
    pending.extend(map(encode, events))


async def _write_pending(session: AsyncSession) -> None:
    written = await write(session, session.info[_PENDING])
    if any(event is None for event in written):
        raise NotFoundError("The project is gone.")


async def write(session: AsyncSession, events: Sequence[EncodedEvent]) -> list[Event | None]:
    """Write events now, and lock the logs until the commit; None stands for an event whose project is gone."""
    if not events:
        return []
    rows = await session.execute(
        _APPEND,
        {
            "project_ids": [event.project_id for event in events],
            "types": [event.type for event in events],
            "task_ids": [event.task_id for event in events],
            "data": [event.data for event in events],
        },
    )
    written: defaultdict[int, list[Event]] = defaultdict(list)
    for project_id, seq, task_id, kind, data, at, _ in rows:
        written[project_id].append(_event(project_id, seq, task_id, kind, data, at))
    turns = {project_id: iter(numbered) for project_id, numbered in written.items()}
    return [next(turns[event.project_id]) if event.project_id in turns else None for event in events]


class Verdict(StrEnum):
    """What has become of an event of a batch. `fenced_off`: its subject is another's; `gone`: its project is."""

    WRITTEN = "written"
    FENCED_OFF = "fenced_off"
    GONE = "gone"


async def write_batch(
    database: Database, writer: UUID, batch: int, events: Sequence[EncodedEvent]
) -> list[Verdict] | None:
    """Write what a writer has gathered, in a transaction of its own, for each event whose fence stands; what became of
    each. None: it was written already. A writer's batches have ascending numbers.

    Raises `UnavailableError`; the batch may have been written then, so it is to be tried again as it is.
    """
    rows = await database.fetch(
        _WRITE_BATCH,
        writer=writer,
        batch=batch,
        project_ids=[event.project_id for event in events],
        types=[event.type for event in events],
        task_ids=[event.task_id for event in events],
        data=[event.data for event in events],
        subjects=[event.fence and event.fence.subject for event in events],
        tokens=[event.fence and UUID(event.fence.token) for event in events],
    )
    if not rows:
        return None
    admitted, alive = set(rows[0][0] or ()), set(rows[0][1] or ())
    return [
        Verdict.FENCED_OFF if n not in admitted else Verdict.WRITTEN if event.project_id in alive else Verdict.GONE
        for n, event in enumerate(events, start=1)
    ]


async def forget_writers(session: AsyncSession) -> None:
    """Forget writers that have been silent for a week."""
    await session.execute(_FORGET_WRITERS)


async def end(session: AsyncSession, project_id: int) -> None:
    """Tell readers that the log is about to be deleted: call it before the rows go, in the same transaction.

    The project's last state travels along, for a reader that has been too slow to get it from the table.
    """
    await session.execute(_END, {"project_id": str(project_id)})


@dataclass(frozen=True)
class _News:
    """Events in order, and the number up to which the log has been read with them.

    `gone`: the project is, and nothing follows; `more`: there is more in the table.
    """

    events: list[Event]
    position: int
    gone: bool = False
    more: bool = False


class EventReader:
    """Follows logs: what is in the table first, then what the listener hears."""

    def __init__(self, database: Database, listener: EventListener) -> None:
        self._database = database
        self.listener = listener

    async def follow(
        self, project_id: int, *, since: int = 0, types: Collection[str] | None = None, task_id: str | None = None
    ) -> AsyncGenerator[Event]:
        """Every event after `since`, once, in order, then live; only those of `types` and `task_id` where given.

        Ends when the project is gone, after what was left of its log. Outlasts outages of Postgres. Holds no
        database session while it waits. Close it (`contextlib.aclosing`) to end it earlier.
        """
        async with aclosing(self.follow_batches(project_id, since=since, types=types, task_id=task_id)) as batches:
            async for batch in batches:
                for event in batch:
                    yield event

    async def follow_batches(
        self, project_id: int, *, since: int = 0, types: Collection[str] | None = None, task_id: str | None = None
    ) -> AsyncGenerator[list[Event]]:
        """As `follow`, in lists of what came together, none of them empty."""
        position = since
        wanted = _Filter(None if types is None else frozenset(types), task_id)
        async with self.listener.subscribe(EVENTS_CHANNEL, str(project_id)) as subscription:
            subscription.mark_lost()  # begin with the table
            while True:
                news = await self._next(project_id, position, wanted, subscription)
                if batch := [event for event in news.events if event.seq > position and wanted.takes(event)]:
                    yield batch
                if news.gone:
                    return
                position = max(position, news.position)

    async def _next(self, project_id: int, position: int, wanted: "_Filter", subscription: Subscription) -> _News:
        note = await subscription.get()
        if note:
            news = _parse(project_id, note)
            if news.gone or news.events[0].seq <= position + 1:
                return news
        news = await self._patient_page(project_id, position, wanted)
        if news.more:
            subscription.mark_lost()  # the next page
        if news.gone:
            notes = [note or "", *subscription.drain()]
            return _News([event for left in notes for event in _parse(project_id, left).events], position, gone=True)
        return news

    async def _patient_page(self, project_id: int, position: int, wanted: "_Filter") -> _News:
        while True:
            try:
                return await self._page(project_id, position, wanted)
            except UnavailableError:
                await asyncio.sleep(_RETRY_S)

    async def _page(self, project_id: int, position: int, wanted: "_Filter") -> _News:
        parameters = {
            "project_id": project_id,
            "since": position,
            "types": None if wanted.types is None else sorted(wanted.types),
            "task_id": wanted.task_id,
            "limit": _PAGE,
        }
        async with self._database.reading() as session:
            rows = (await session.execute(_READ, parameters)).all()
        if not rows:
            return _News([], position, gone=True)
        events = [_event(project_id, *row[1:]) for row in rows if row.seq is not None]
        if len(events) == _PAGE:
            return _News(events, events[-1].seq, more=True)
        return _News(events, rows[0].last_seq)


@dataclass(frozen=True)
class _Filter:
    types: frozenset[str] | None
    task_id: str | None

    def takes(self, event: Event) -> bool:
        return (self.types is None or event.type in self.types) and self.task_id in (None, event.task_id)


def _parse(project_id: int, note: str) -> _News:
    """A notification's events; a pointer (empty) has none."""
    body: Any = json.loads(note) if note else []
    gone = isinstance(body, dict)
    events = [Event(project_id=project_id, **raw) for raw in (body["last"] if gone else body)]
    return _News(events, events[-1].seq if events else 0, gone=gone)


def _event(project_id: int, seq: int, task_id: UUID | None, kind: str, data: dict[str, Any], at: Any) -> Event:  # noqa: ANN401 -- a column
    return Event(
        seq=seq, type=kind, project_id=project_id, task_id=None if task_id is None else str(task_id), at=at, data=data
    )
