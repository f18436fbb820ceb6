"""What Postgres says as it happens: one direct LISTEN connection per process, fanned out in memory.

A notification's payload is `<key>` or `<key> <body>`. Losing one is never losing data: subscribers are told that
they may have missed something, and read their table.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import asyncpg
import structlog

from storage.engine import connect, is_outage, plain_dsn
from workflows.contracts.errors import UnavailableError

EVENTS_CHANNEL: Final = "events"
"""Key: the project's id; body: its new events, see storage/event_log.py."""
OPERATIONS_CHANNEL: Final = "operations"
"""Key: the operation's id; no body."""
CANCELS_CHANNEL: Final = "task_cancels"
"""Key: the id of a task whose cancellation has been asked for; no body."""
_CHANNELS: Final = (EVENTS_CHANNEL, OPERATIONS_CHANNEL, CANCELS_CHANNEL)

_CAPACITY: Final = 256
_FIRST_DELAY_S: Final = 0.05
_LONGEST_DELAY_S: Final = 2.0
_HEARTBEAT_S: Final = 10.0
_HEARTBEAT_TIMEOUT_S: Final = 5.0

_log = structlog.get_logger(__name__)


class Subscription:
    """What one subscriber hasn't taken yet: at most 256 bodies, beyond which they are dropped and that is said."""

    def __init__(self) -> None:
        self._bodies: deque[str] = deque()
        self._lost = False
        self._woken = asyncio.Event()

    async def get(self) -> str | None:
        """The next body, or None when something may have been missed: on overflow, after a reconnect."""
        await self._something()
        if self._lost:
            self._lost = False
            return None
        return self._bodies.popleft()

    async def wait(self, *, timeout_s: float) -> bool:
        """Whether anything was said, or missed, within `timeout_s`; takes all of it."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._something()
        except TimeoutError:
            return False
        self._lost = False
        self._bodies.clear()
        return True

    def drain(self) -> list[str]:
        """All that is left, without waiting."""
        bodies = list(self._bodies)
        self._bodies.clear()
        return bodies

    def tell(self, body: str) -> None:
        """Add a body; called by the listener."""
        if len(self._bodies) >= _CAPACITY:
            self._bodies.clear()
            self._lost = True
        self._bodies.append(body)
        self._woken.set()

    def mark_lost(self) -> None:
        """Make the next `get` return None."""
        self._lost = True
        self._woken.set()

    async def _something(self) -> None:
        while not self._lost and not self._bodies:
            self._woken.clear()
            await self._woken.wait()


class EventListener:
    """One connection that listens, for all subscribers of this process. Connects at the first subscription."""

    def __init__(self, url: str) -> None:
        self._dsn = plain_dsn(url)
        self._subscriptions: defaultdict[tuple[str, str], set[Subscription]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def subscribe(self, channel: str, key: str) -> AsyncIterator[Subscription]:
        """Hear everything that is said about `key` from here on.

        Subscribe, then read the state from its table, then wait for what is said: nothing falls between.
        """
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="event listener")
        subscription = Subscription()
        self._subscriptions[channel, key].add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions[channel, key].discard(subscription)
            if not self._subscriptions[channel, key]:
                del self._subscriptions[channel, key]

    async def close(self) -> None:
        """Stop listening; subscribers hear nothing more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        delay = _FIRST_DELAY_S
        while True:
            try:
                connection = await connect(self._dsn)
                delay = _FIRST_DELAY_S
                await self._listen(connection)
                _log.warning("listener_lost")
            except UnavailableError:
                _log.warning("listener_waits_for_postgres", delay_s=delay)
            except Exception:  # noqa: BLE001 -- top of a loop: a process gone deaf would freeze all its streams
                _log.exception("listener_failed", delay_s=delay)
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY_S)

    async def _listen(self, connection: asyncpg.Connection) -> None:
        """Hear until the connection has gone."""
        closed = asyncio.Event()
        connection.add_termination_listener(lambda _: closed.set())
        try:
            for channel in _CHANNELS:
                await connection.add_listener(channel, self._hear)
            for subscribers in self._subscriptions.values():
                for subscription in subscribers:
                    subscription.mark_lost()
            while not await _within(closed, _HEARTBEAT_S):
                # A server that vanished without a word would leave us listening to nothing.
                await connection.execute("SELECT 1", timeout=_HEARTBEAT_TIMEOUT_S)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            if not is_outage(error) and not connection.is_closed():
                raise
        finally:
            connection.terminate()

    def _hear(self, _connection: object, _pid: int, channel: str, payload: str) -> None:
        key, _, body = payload.partition(" ")
        for subscription in self._subscriptions.get((channel, key), ()):
            subscription.tell(body)


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
