"""Writes what many streams have to say in few transactions: one statement every 20 ms per process, many rows."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid4

import structlog
from sqlalchemy import text

from storage import event_fences, event_log
from storage.engine import Database
from storage.event_fences import FencedOffError
from storage.event_log import EncodedEvent
from workflows.contracts.errors import UnavailableError
from workflows.contracts.events import EventType, NewEvent

_WINDOW_S: Final = 0.02
"""At 50 streams of 20 events/s: 31 ms to the client at p95; 40 ms would give 51 and save 0.1 core (bench)."""
_CAPACITY: Final = 10_000
_LARGEST_BATCH: Final = 1_000
_FIRST_DELAY_S: Final = 0.05
_LONGEST_DELAY_S: Final = 2.0

_log = structlog.get_logger(__name__)

# Waits for a transaction of ours that may still be open on a connection that we have lost: it either commits, and
# the number is taken, or is rolled back, and it is ours.
_CLAIM: Final = text("""
INSERT INTO event_writers (id, batch) VALUES (:id, :batch)
ON CONFLICT (id) DO UPDATE SET batch = excluded.batch, at = now() WHERE event_writers.batch < excluded.batch
RETURNING batch
""")
_FORGET: Final = text("DELETE FROM event_writers WHERE at < now() - interval '7 days'")


_MANY: Final = 100
"""Streams in a batch above which the window is twice as long: a machine that is that busy has less to spare."""


@dataclass(frozen=True)
class _Waiting:
    """An event on its way. `encoded` None: a piece of text, which may yet be joined with the next one."""

    event: NewEvent
    encoded: EncodedEvent | None
    done: asyncio.Future[None]


@dataclass
class _Line:
    """One event as it is written, and those who wait for it."""

    event: NewEvent
    encoded: EncodedEvent | None
    waiting: list[asyncio.Future[None]]

    def takes(self, other: NewEvent) -> bool:
        """Whether the other is more of the same text, by the same writer."""
        return (
            self.encoded is None
            and other.type == EventType.TEXT_DELTA
            and (other.fence, other.data["step"]) == (self.event.fence, self.event.data["step"])
        )

    def join(self, other: _Waiting) -> None:
        """Take in a piece that follows."""
        text = self.event.data["text"] + other.event.data["text"]
        self.event = self.event.model_copy(update={"data": {**self.event.data, "text": text}})
        self.waiting.append(other.done)


def _lines(batch: Sequence[_Waiting]) -> list[_Line]:
    """The batch in order, with pieces of one text joined where nothing of their task is between them."""
    lines: list[_Line] = []
    newest: dict[str | None, _Line] = {}
    for waiting in batch:
        line = newest.get(waiting.event.task_id)
        if waiting.encoded is None and line is not None and line.takes(waiting.event):
            line.join(waiting)
            continue
        line = _Line(waiting.event, waiting.encoded, [waiting.done])
        lines.append(line)
        newest[waiting.event.task_id] = line
    return lines


class EventBatcher:
    """One per process. `put` returns when the event is durable; an event is written once, whatever happens.

    The first event after a silence goes at once, those that follow wait for the window. While Postgres is away
    nothing is lost: batches are kept and tried again, and `put` waits, at most 10,000 events deep.
    """

    def __init__(self, database: Database, *, window_s: float = _WINDOW_S) -> None:
        self._database = database
        self._window_s = window_s
        self._id: UUID = uuid4()
        self._batch = 0
        self._places = asyncio.Semaphore(_CAPACITY)
        self._queue: asyncio.Queue[_Waiting | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def put(self, event: NewEvent) -> None:
        """Write the event; return when it is committed. Events put one after the other keep their order. Pieces of one
        text that meet in a batch are written as one event.

        An event of a project that is gone is dropped, with a log line. Cancelled while it still waits for its
        turn, it isn't written. Raises `ValueError` for data that is no JSON, `UnavailableError` when closing,
        `FencedOffError` when the event's fence is another's by now: it wasn't written then.
        """
        async with self._places:
            await self.send(event)

    def send(self, event: NewEvent) -> asyncio.Future[None]:
        """As `put`, for a caller that bounds by itself what it has on its way: the future ends as `put` does."""
        encoded = None if event.type == EventType.TEXT_DELTA else event_log.encode(event)
        if self._closed:
            raise _closing()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="event batcher")
        waiting = _Waiting(event, encoded, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(waiting)
        return waiting.done

    async def close(self, *, timeout_s: float = 10.0) -> None:
        """Write what is waiting, for at most `timeout_s`, then stop; what was not written fails `put`."""
        self._closed = True
        if self._task is None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                self._queue.put_nowait(None)
                await asyncio.shield(self._task)
        except TimeoutError:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        batch: list[_Waiting] = []
        try:
            while True:
                first = await self._queue.get()
                if first is None:
                    return
                batch = [first]
                await asyncio.sleep(max(0.0, due - loop.time()))
                began = loop.time()
                batch = self._take(first)
                lines = _lines(batch)
                due = began + (self._window_s if len(lines) < _MANY else 2 * self._window_s)
                await self._settle(lines)
        finally:
            for waiting in [*batch, *self._left()]:
                if not waiting.done.done():
                    waiting.done.set_exception(_closing())

    def _take(self, first: _Waiting) -> list[_Waiting]:
        batch = [first]
        while len(batch) < _LARGEST_BATCH and not self._queue.empty():
            waiting = self._queue.get_nowait()
            if waiting is None:
                self._queue.put_nowait(None)
                break
            batch.append(waiting)
        return [waiting for waiting in batch if not waiting.done.cancelled()]

    def _left(self) -> list[_Waiting]:
        left = []
        while not self._queue.empty():
            waiting = self._queue.get_nowait()
            if waiting is not None:
                left.append(waiting)
        return left

    async def _settle(self, lines: list[_Line]) -> None:
        failures: Sequence[Exception | None] = []
        if lines:
            try:
                events = [line.encoded or event_log.encode(line.event) for line in lines]
                failures = await self._write_until_it_is(events)
            except Exception as error:  # noqa: BLE001 -- top of a loop: whatever it is belongs to those who wait
                failures = [error] * len(lines)
        for line, failure in zip(lines, failures, strict=True):
            for done in line.waiting:
                if done.done():
                    continue
                if failure is None:
                    done.set_result(None)
                else:
                    done.set_exception(failure)

    async def _write_until_it_is(self, events: Sequence[EncodedEvent]) -> Sequence[Exception | None]:
        self._batch += 1
        delay = _FIRST_DELAY_S
        while True:
            try:
                return await self._write(events)
            except UnavailableError:
                _log.warning("batcher_waits_for_postgres", events=len(events), delay_s=delay)
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY_S)

    async def _write(self, events: Sequence[EncodedEvent]) -> Sequence[Exception | None]:
        """One try; returns what each event's writer is told. When an earlier try's commit succeeded and only its
        answer was lost, there is nothing to do.
        """
        async with self._database.transaction() as session:
            if (await session.execute(_CLAIM, {"id": self._id, "batch": self._batch})).first() is None:
                return [None] * len(events)
            if self._batch == 1:
                await session.execute(_FORGET)
            standing = await event_fences.standing(session, events)
            admitted = [event for event, stands in zip(events, standing, strict=True) if stands]
            written = await event_log.write(session, admitted)
        for event, stored in zip(admitted, written, strict=True):
            if stored is None:
                _log.warning("event_dropped_as_its_project_is_gone", type=event.type, project_id=event.project_id)
        return [None if stands else FencedOffError() for stands in standing]


def _closing() -> UnavailableError:
    return UnavailableError("This process is shutting down; try again in a moment.")
