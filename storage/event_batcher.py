"""Writes what many streams have to say in few transactions: one statement every 20 ms per process, many rows."""

import asyncio
from collections.abc import Sequence
from typing import Final
from uuid import UUID, uuid4

import structlog

from storage import event_log
from storage.engine import Database
from storage.event_fences import FencedOffError
from storage.event_log import EncodedEvent, Verdict
from workflows.contracts.errors import UnavailableError
from workflows.contracts.events import EventType, NewEvent

_WINDOW_S: Final = 0.02
"""At 50 streams of 20 events/s: 31 ms to the client at p95; 40 ms would give 51 and save 0.1 core (bench)."""
_CAPACITY: Final = 10_000
_LARGEST_BATCH: Final = 1_000
_FIRST_DELAY_S: Final = 0.05
_LONGEST_DELAY_S: Final = 2.0

_log = structlog.get_logger(__name__)
_MANY: Final = 100
"""Streams in a batch above which the window is twice as long: a machine that is that busy has less to spare."""


class Line:
    """An event on its way to the log. `done` ends as `EventBatcher.put` does. Raises `ValueError` for data that is no
    JSON.
    """

    def __init__(self, event: NewEvent) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._event = event
        self._more: list[str] = []
        self._encoded = None if event.type == EventType.TEXT_DELTA else event_log.encode(event)
        self._is_taken = False

    def join(self, text: str) -> bool:
        """Add to the text of a `text.delta`, as long as its batch hasn't been taken; False when it has."""
        if not self._is_taken:
            self._more.append(text)
        return not self._is_taken

    def take(self) -> EncodedEvent:
        """The event as it is to be written, now and at each further try: nothing joins it any more."""
        self._is_taken = True
        if self._encoded is None:
            data = self._event.data
            said = {**data, "text": data["text"] + "".join(self._more)} if self._more else data
            self._encoded = event_log.encode(self._event.model_copy(update={"data": said}))
        return self._encoded


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
        self._queue: asyncio.Queue[Line | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def put(self, event: NewEvent) -> None:
        """Write the event; return when it is committed. Events put one after the other keep their order.

        An event of a project that is gone is dropped, with a log line. Cancelled while it still waits for its
        turn, it isn't written. Raises `ValueError` for data that is no JSON, `UnavailableError` when closing,
        `FencedOffError` when the event's fence is another's by now: it wasn't written then.
        """
        async with self._places:
            await self.send(event).done

    def send(self, event: NewEvent) -> Line:
        """As `put`, for a caller that bounds by itself what it has on its way."""
        line = Line(event)
        if self._closed:
            raise _closing()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="event batcher")
        self._queue.put_nowait(line)
        return line

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
        lines: list[Line] = []
        try:
            while True:
                first = await self._queue.get()
                if first is None:
                    return
                lines = [first]
                await asyncio.sleep(max(0.0, due - loop.time()))
                began = loop.time()
                lines = self._take(first)
                due = began + (self._window_s if len(lines) < _MANY else 2 * self._window_s)
                await self._settle(lines)
        finally:
            for line in [*lines, *self._left()]:
                if not line.done.done():
                    line.done.set_exception(_closing())

    def _take(self, first: Line) -> list[Line]:
        lines = [first]
        while len(lines) < _LARGEST_BATCH and not self._queue.empty():
            line = self._queue.get_nowait()
            if line is None:
                self._queue.put_nowait(None)
                break
            lines.append(line)
        return [line for line in lines if not line.done.cancelled()]

    def _left(self) -> list[Line]:
        left = []
        while not self._queue.empty():
            line = self._queue.get_nowait()
            if line is not None:
                left.append(line)
        return left

    async def _settle(self, lines: list[Line]) -> None:
        failures: Sequence[Exception | None] = []
        if lines:
            try:
                failures = await self._write_until_it_is([line.take() for line in lines])
            except Exception as error:  # noqa: BLE001 -- top of a loop: whatever it is belongs to those who wait
                failures = [error] * len(lines)
        for line, failure in zip(lines, failures, strict=True):
            if line.done.done():
                continue
            if failure is None:
                line.done.set_result(None)
            else:
                line.done.set_exception(failure)

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
        """One try; returns what each event's writer is told. When an earlier try was written and only its answer was
        lost, there is nothing to do.
        """
        if self._batch == 1:
            async with self._database.transaction() as session:
                await event_log.forget_writers(session)
        verdicts = await event_log.write_batch(self._database, self._id, self._batch, events)
        if verdicts is None:
            return [None] * len(events)
        for event, verdict in zip(events, verdicts, strict=True):
            if verdict == Verdict.GONE:
                _log.warning("event_dropped_as_its_project_is_gone", type=event.type, project_id=event.project_id)
        return [FencedOffError() if verdict == Verdict.FENCED_OFF else None for verdict in verdicts]


def _closing() -> UnavailableError:
    return UnavailableError("This process is shutting down; try again in a moment.")
