"""A project's event stream, followed in the background as a client's page would."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import httpx
from httpx_sse import aconnect_sse

from tests.e2e.studio import Project

_OPENED_S = 10.0


@dataclass(frozen=True)
class Seen:
    """An event. `name` and `id`: of the frame; `at`: when it came, by this machine's monotonic clock."""

    name: str
    id: str
    body: dict[str, Any]
    at: float

    @property
    def seq(self) -> int:
        return int(self.body["seq"])

    @property
    def data(self) -> dict[str, Any]:
        return dict(self.body["data"])


class Tail:
    """Use as a context: everything after `since` until it is left."""

    def __init__(self, project: Project, since: int = 0) -> None:
        self._project = project
        self._since = since
        self._seen: list[Seen] = []
        self._more = threading.Condition()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="tail")
        self._opened = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._opened.wait(_OPENED_S), f"the stream didn't open: {self._error!r}"
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the stream has ended by itself, and with it the loop
            if self._loop is not None and self._task is not None:
                self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)
        assert not self._thread.is_alive()

    @property
    def seen(self) -> list[Seen]:
        with self._more:
            return list(self._seen)

    def wait(self, wanted: Callable[[Seen], bool], what: str, timeout_s: float = 30.0) -> Seen:
        """The first event that is `wanted`, be it here already."""
        deadline = time.monotonic() + timeout_s
        with self._more:
            while True:
                for event in self._seen:
                    if wanted(event):
                        return event
                remaining = deadline - time.monotonic()
                assert remaining > 0, f"{what}: no such event within {timeout_s:g} s; seen {self._seen}"
                assert self._error is None, f"the stream broke: {self._error!r}"
                self._more.wait(remaining)

    def wait_state(self, event: str, state: str) -> Seen:
        return self.wait(lambda seen: seen.name == event and seen.data["state"] == state, f"{event} {state}")

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            self._task = self._loop.create_task(self._read())
            try:
                runner.run(self._wait())
            except asyncio.CancelledError:
                return
            except (httpx.HTTPError, AssertionError) as error:
                with self._more:
                    self._error = error
                    self._more.notify_all()

    async def _wait(self) -> None:
        assert self._task is not None
        await self._task

    async def _read(self) -> None:
        owner = self._project.owner
        headers = {"Authorization": f"Bearer {owner.token}"}
        address = f"/api/projects/{self._project.id}/events?since={self._since}"
        async with (
            httpx.AsyncClient(base_url=owner.studio.stack.api, headers=headers, timeout=30) as client,
            aconnect_sse(client, "GET", address) as source,
        ):
            assert source.response.status_code == 200, source.response.status_code
            self._opened.set()
            async for frame in source.aiter_sse():
                with self._more:
                    self._seen.append(Seen(frame.event, frame.id, json.loads(frame.data), time.monotonic()))
                    self._more.notify_all()
