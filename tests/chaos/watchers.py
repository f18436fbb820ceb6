"""Clients that watch by SSE and WebSocket, lose their connections, and go on after the last event that they have."""

import asyncio
import json
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import websockets
from httpx_sse import aconnect_sse

from tests.chaos.world import Person, Project, until

Body = dict[str, Any]

FINAL = ("completed", "failed", "cancelled")
HURRIED = 0.2
"""Of those that are cut, the share that may not even open."""


def steadily() -> float | None:
    """A connection that holds until somebody else ends it."""
    return None


class Watcher(ABC):
    """Collects the body of each event as it was sent. `stay_s` says of each stream how long it is to hold once it is
    open; some are cut before that.
    """

    def __init__(self, owner: Person, stay_s: Callable[[], float | None] = steadily) -> None:
        self.seen: list[Body] = []
        self.cuts = 0
        self._owner = owner
        self._stay_s = stay_s
        self._open = False
        self._over = False

    @property
    def position(self) -> int:
        return self.seen[-1]["seq"] if self.seen else 0

    def step(self) -> int:
        """The newest that has begun."""
        started = (body["data"]["step"] for body in reversed(self.seen) if body["type"] == "step.started")
        return next(started, 0)

    async def follow(self) -> None:
        """Until the stream itself says that nothing follows."""
        async with httpx.AsyncClient(base_url=self._owner.world.stack.api, headers=self._owner.http.headers) as http:
            while not self._over:
                self._open, stay_s = False, self._stay_s()
                hurried = stay_s is not None and random.random() < HURRIED
                try:
                    async with asyncio.timeout(random.uniform(0, 0.2) if hurried else None) as self._limit:
                        await self._connected(http, stay_s)
                except (TimeoutError, OSError, httpx.HTTPError, websockets.WebSocketException) as error:
                    check_passing(error)
                self.cuts += self._open and not self._over
                await asyncio.sleep(random.uniform(0, 0.1))

    async def until_seen(self, seq: int, timeout_s: float = 60.0) -> None:
        async def there() -> bool:
            return self._over or self.position >= seq

        await until(there, f"event {seq} at a watcher, which is at {self.position}", timeout_s)

    @abstractmethod
    async def _connected(self, http: httpx.AsyncClient, stay_s: float | None) -> None:
        """One connection, to its end; says when it is `_opened`."""

    def _opened(self, stay_s: float | None) -> None:
        self._open = True
        self._limit.reschedule(None if stay_s is None else asyncio.get_running_loop().time() + stay_s)

    def _take(self, body: Body) -> None:
        self.seen.append(body)


class SseWatcher(Watcher):
    """A stream of events at `address`."""

    def __init__(self, owner: Person, address: str, stay_s: Callable[[], float | None] = steadily) -> None:
        super().__init__(owner, stay_s)
        self._address = address

    async def _connected(self, http: httpx.AsyncClient, stay_s: float | None) -> None:
        headers = {"Last-Event-ID": str(self.position)} if self.seen else {}
        async with aconnect_sse(http, "GET", self._address, headers=headers, timeout=30) as source:
            if source.response.status_code == 204:
                self._over = True
                return
            source.response.raise_for_status()
            self._opened(stay_s)
            async for frame in source.aiter_sse():
                if not frame.data:
                    continue  # a comment, which the client's library takes for a frame
                body = json.loads(frame.data)
                assert (frame.id, frame.event) == (str(body["seq"]), body["type"])
                self._take(body)


class TaskWatcher(SseWatcher):
    """A task's own stream, which ends with the task."""

    def __init__(self, owner: Person, task_id: str, stay_s: Callable[[], float | None] = steadily) -> None:
        super().__init__(owner, f"/api/agent/tasks/{task_id}/events", stay_s)
        self.task_id = task_id

    def _take(self, body: Body) -> None:
        super()._take(body)
        self._over = is_final(body)


class SocketWatcher(Watcher):
    """A chat's WebSocket."""

    def __init__(self, owner: Person, chat_id: str, stay_s: Callable[[], float | None] = steadily) -> None:
        super().__init__(owner, stay_s)
        self._chat_id = chat_id

    async def _connected(self, http: httpx.AsyncClient, stay_s: float | None) -> None:
        address = f"{http.base_url}/api/chat/{self._chat_id}/ws".replace("http", "ws", 1)
        connecting = websockets.connect(
            f"{address}?since={self.position}",
            additional_headers={"Authorization": http.headers["Authorization"]},
            max_size=None,
            proxy=None,
        )
        async with connecting as socket:
            try:
                ready = json.loads(await socket.recv())
                assert (ready["type"], ready["last_seq"]) == ("ready", self.position)
                self._opened(stay_s)
                async for frame in socket:
                    self._take(json.loads(frame))
            finally:
                socket.transport.abort()  # no farewell


def check_passing(error: Exception) -> None:
    """Neither a refusal nor an end of access: what a client may try again after."""
    status = None
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
    if isinstance(error, websockets.InvalidStatus):
        status = error.response.status_code
    assert status in {None, 503}, error
    if isinstance(error, websockets.ConnectionClosed):
        assert error.rcvd is None or error.rcvd.code in {1006, 1011, 1012}, error


def is_final(body: Body) -> bool:
    return body["type"] == "task.state" and body["data"]["state"] in FINAL


@asynccontextmanager
async def following(*watchers: Watcher) -> AsyncIterator[None]:
    """They watch while this is open; what goes wrong with one of them ends it."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(watcher.follow()) for watcher in watchers]
        yield
        for task in tasks:
            task.cancel()


async def whole_log(project: Project) -> list[Body]:
    """The project's log so far, read from its beginning, gapless."""
    last = await project.last_seq()
    reader = SseWatcher(project.owner, f"/api/projects/{project.id}/events")
    async with following(reader):
        await reader.until_seen(last)
    assert [body["seq"] for body in reader.seen] == list(range(1, len(reader.seen) + 1))
    return reader.seen


def check_same(seen: Sequence[Body], log: Sequence[Body]) -> None:
    """Every event once, in order, and as it stands in the log."""
    assert [body["seq"] for body in seen] == [body["seq"] for body in log]
    assert list(seen) == list(log)
