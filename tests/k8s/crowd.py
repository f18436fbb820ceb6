"""Many projects of several people, made and started at once through the API, and what the cluster is asked for them."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar
from uuid import uuid4

import httpx

from tests.cluster import kubectl
from tests.workers.stacks import RunningStack

PASSWORD: Final = "correct horse battery"
_READY_S: Final = 90.0
_LOOK_S: Final = 0.5
_AT_ONCE: Final = 8
"""Previews that are looked at at the same time."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Person:
    """A user with a session."""

    id: int
    http: httpx.AsyncClient


@dataclass(frozen=True)
class Project:
    """A project and its owner; `operation`: where the start that it was made with tells how far it is."""

    owner: Person
    id: int
    operation: str = ""

    async def call(self, method: str, path: str = "") -> httpx.Response:
        answer = await self.owner.http.request(method, f"/api/projects/{self.id}{path}")
        assert answer.is_success, answer.text
        return answer


@dataclass
class Crowd:
    """People who are signed in, and their projects."""

    stack: RunningStack
    people: list[Person]
    projects: list[Project] = field(default_factory=list)

    async def make(self, each: int) -> None:
        """Have every person create and start so many projects, all at the same moment."""
        asked = (self._make(person, number) for person in self.people for number in range(each))
        self.projects = await asyncio.gather(*asked)

    async def create(self, each: int) -> None:
        """Have every person create so many projects, and wait until their files are there."""
        asked = (self._create(person, number) for person in self.people for number in range(each))
        self.projects = await asyncio.gather(*asked)

        async def ready() -> bool:
            return {state for state, _, _ in (await self.states()).values()} == {"ready"}

        await until(ready, "all projects ready", _READY_S)

    async def start(self) -> None:
        """Have all of them started at the same moment."""
        await asyncio.gather(*(project.call("POST", "/start") for project in self.projects))

    async def _make(self, person: Person, number: int) -> Project:
        project = await self._create(person, number)
        answer = await project.call("POST", "/start")
        return replace(project, operation=answer.headers["location"])

    async def _create(self, person: Person, number: int) -> Project:
        answer = await person.http.post("/api/projects", json={"name": f"project {number}", "template": "static"})
        assert answer.status_code == 202, answer.text
        return Project(person, int(answer.json()["id"]))

    async def states(self) -> dict[int, tuple[str, str, str | None]]:
        """Of each project that there is: its own state, its dev server's, and that one's reason."""
        found = {}
        for person in self.people:
            answer = await person.http.get("/api/projects?limit=200")
            assert answer.status_code == 200, answer.text
            for item in answer.json()["items"]:
                server = item["dev_server"]
                found[int(item["id"])] = (str(item["state"]), str(server["state"]), server["reason"])
        return found

    async def until_running(self, within_s: float) -> "Coming":
        """Return once all run. Nothing else may ever be said of one that doesn't than that it is on its way."""
        began = time.monotonic()
        coming = Coming()
        while len(coming.after_s) < len(self.projects):
            for project_id, (state, server, reason) in (await self.states()).items():
                coming.seen[state, server] += 1
                if server == "running":
                    coming.after_s.setdefault(project_id, time.monotonic() - began)
                else:
                    assert (state in {"provisioning", "ready"}, server, reason) == (True, "starting", None)
            left = len(self.projects) - len(coming.after_s)
            assert time.monotonic() - began < within_s, f"{left} don't run after {within_s:g} s"
            await asyncio.sleep(_LOOK_S)
        return coming

    async def operations(self) -> list[dict[str, Any]]:
        """How far each start is."""
        answers = await asyncio.gather(*(project.owner.http.get(project.operation) for project in self.projects))
        return [dict(answer.json()) for answer in answers]

    async def pages(self, within_s: float = 30.0) -> list[httpx.Response]:
        """What every preview shows its owner through the Ingress: its app's answer, once the route is there."""
        deadline = time.monotonic() + within_s
        turn = asyncio.Semaphore(_AT_ONCE)
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.stack.environment['PREVIEW_PORT']}", timeout=30
        ) as preview:

            async def page(project: Project) -> httpx.Response:
                async with turn:
                    token = (await project.call("POST", "/preview-token")).json()
                    headers = {"Host": token["url"].split("/")[2], "X-Preview-Token": token["token"]}

                    async def answer() -> httpx.Response | None:
                        found = await preview.get("/", headers=headers)
                        return None if found.status_code in {502, 503} else found

                    return await until(answer, f"the page of project {project.id}", deadline - time.monotonic())

            return await asyncio.gather(*map(page, self.projects))

    async def delete(self, within_s: float) -> None:
        """Have all of them deleted at once, and wait for that."""
        await asyncio.gather(*(project.call("DELETE") for project in self.projects))

        async def gone() -> bool:
            return not await self.states()

        await until(gone, "all projects gone", within_s)


@dataclass
class Coming:
    """How a crowd's projects came up. `after_s`: when each was first seen to run; `seen`: states, and how often."""

    after_s: dict[int, float] = field(default_factory=dict)
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)


@asynccontextmanager
async def crowd_of(stack: RunningStack, people: int) -> AsyncIterator[Crowd]:
    """So many people who have just registered."""
    async with AsyncExitStack() as around:
        made = []
        for _ in range(people):
            http = await around.enter_async_context(httpx.AsyncClient(base_url=stack.api, timeout=60))
            body = {"email": f"{uuid4().hex[:12]}@example.com", "password": PASSWORD}
            answer = await http.post("/api/auth/register", json=body)
            assert answer.status_code == 201, answer.text
            http.cookies.clear()
            http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
            made.append(Person(int(answer.json()["user"]["id"]), http))
        yield Crowd(stack, made)


async def until(ask: Callable[[], Awaitable[Result | None]], what: str, within_s: float) -> Result:
    """The first answer that isn't None or False."""
    deadline = time.monotonic() + within_s
    while not (answer := await ask()):
        assert time.monotonic() < deadline, f"{what}: not within {within_s:g} s"
        await asyncio.sleep(_LOOK_S)
    return answer


# --- what the API server tells of itself ---

_LINE: Final = re.compile(r"^(apiserver_\w+)\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')
_OPEN: Final = {"apiserver_longrunning_gauge", "apiserver_longrunning_requests"}
"""Before Kubernetes 1.26, and since."""
_SCOPES: Final = {"namespace", "resource"}
"""Of requests. The cluster's own parts watch and list all namespaces at once."""
_CALLS: Final = {
    "deployments": {"GET", "LIST", "APPLY", "PATCH", "DELETE"},
    "pods": {"LIST"},
    "services": {"APPLY", "DELETE"},
    "ingresses": {"APPLY", "DELETE"},
    "events": {"LIST"},
}
"""What a cluster's own parts don't do in a single namespace: a kubelet reads and deletes pods by their names."""


@dataclass(frozen=True)
class Asked:
    """What an API server counts by itself, of what nobody but the service asks: calls by (verb, kind) since it began,
    and by kind the watches that are open now.
    """

    calls: Counter[tuple[str, str]]
    watches: Counter[str]

    def since(self, before: "Asked") -> "Asked":
        """What has come in between, and the watches that are open now beyond those of then."""
        return Asked(self.calls - before.calls, self.watches - before.watches)

    def count(self, verb: str) -> int:
        """How often it was asked for that, of whatever kind."""
        return sum(number for (asked_for, _), number in self.calls.items() if asked_for == verb)


async def asked() -> Asked:
    """What the cluster's API server counts at this moment."""
    return read_metrics(await asyncio.to_thread(kubectl, "get", "--raw", "/metrics"))


def read_metrics(text: str) -> Asked:
    """The counts that matter, of the whole page."""
    calls: Counter[tuple[str, str]] = Counter()
    watches: Counter[str] = Counter()
    for name, told, value in _LINE.findall(text):
        if name != "apiserver_request_total" and name not in _OPEN:
            continue
        labels = dict(_LABEL.findall(told))
        verb, kind = labels.get("verb", ""), labels.get("resource", "")
        if labels.get("scope") not in _SCOPES or labels.get("subresource"):
            continue
        if name in _OPEN and verb == "WATCH" and kind in {"pods", "deployments"}:
            watches[kind] += int(float(value))
        elif name not in _OPEN and verb in _CALLS.get(kind, ()):
            calls[verb, kind] += int(float(value))
    return Asked(calls, watches)
