"""Clients of the API that stay while its pods go and come: they notice what ordinary ones would try again."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import httpx

from tests.k8s.service import FINAL, User, client

_MOST_TROUBLES = 20


class Follower(threading.Thread):
    """Reads a task's events to the task's end, over as many connections as it takes.

    `seen`: the bodies of the events. `cut`: what ended but not as a stream that is told to end does.
    """

    def __init__(self, user: User, task: str) -> None:
        super().__init__(daemon=True)
        self.seen: list[dict[str, Any]] = []
        self.cut: list[str] = []
        self.connections = 0
        self._headers = {"Authorization": user.http.headers["Authorization"]}
        self._path = f"/api/agent/tasks/{task}/events"
        self._over = False

    def run(self) -> None:
        with client() as http:
            while not self._over and len(self.cut) < _MOST_TROUBLES:
                self._connect(http)

    def _connect(self, http: httpx.Client) -> None:
        last = {"Last-Event-ID": str(self.seen[-1]["seq"])} if self.seen else {}
        rest = ""
        try:
            with http.stream("GET", self._path, headers=self._headers | last) as answer:
                answer.raise_for_status()
                self.connections += 1
                for piece in answer.iter_text():
                    *frames, rest = (rest + piece).split("\n\n")
                    self._take(frames)
        except httpx.HTTPError as error:
            self.cut.append(repr(error))
        if rest:
            self.cut.append(rest)

    def _take(self, frames: list[str]) -> None:
        for frame in frames:
            fields = dict(line.split(": ", 1) for line in frame.splitlines() if not line.startswith(":"))
            if "data" in fields:
                body = json.loads(fields["data"])
                assert (fields["id"], fields["event"]) == (str(body["seq"]), body["type"])
                self.seen.append(body)
                self._over = body["type"] == "task.state" and body["data"]["state"] in FINAL


class Knocking(threading.Thread):
    """Asks again and again, on a connection that is kept and on new ones, and never a second time: what isn't answered
    is in `refused`.
    """

    def __init__(self, user: User) -> None:
        super().__init__(daemon=True)
        self.answered = 0
        self.refused: list[str] = []
        self._headers = {"Authorization": user.http.headers["Authorization"]}
        self._ending = threading.Event()

    def run(self) -> None:
        with client() as http:
            while not self._ending.wait(0.05) and len(self.refused) < _MOST_TROUBLES:
                self._ask(http, "GET", "/healthz")
                self._ask(http, "GET", "/healthz", Connection="close")
                self._ask(http, "GET", "/api/users/me", **self._headers)
                self._ask(http, "POST", "/api/auth/ticket", **self._headers)  # a proxy tries no POST twice

    def _ask(self, http: httpx.Client, method: str, path: str, **headers: str) -> None:
        body: dict[str, str] | None = {} if method == "POST" else None
        try:
            answer = http.request(method, path, json=body, headers=headers)
        except httpx.TransportError as error:
            self.refused.append(f"{method} {path}: {error!r}")
            return
        self.answered += 1
        if not answer.is_success:
            self.refused.append(f"{method} {path}: {answer.status_code} {answer.text}")

    def finish(self) -> Self:
        self._ending.set()
        self.join(timeout=90)
        return self


@contextmanager
def knocking(user: User) -> Iterator[Knocking]:
    """Somebody who asks until the end of the block."""
    somebody = Knocking(user)
    somebody.start()
    try:
        yield somebody
    finally:
        somebody.finish()
