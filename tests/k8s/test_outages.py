"""Parts of a real cluster go away under the whole service: what runs is served, nothing is told wrongly or done twice,
and all heals.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

import httpx
import pytest
from temporalio.client import Client

import docker
from tests.chaos.checks import check_started_once
from tests.chaos.observers import Cluster
from tests.chaos.tasks import LOG, begin, check_worked_once, commands
from tests.chaos.watchers import whole_log
from tests.chaos.world import Person, Project, World, states, until, world_of
from tests.cluster import kubectl
from tests.namespaces import own_namespace
from tests.node import hang, heal, kill
from tests.workers.stacks import stack_environment
from workflows.contracts.names import ProjectRef, dev_server_id, kubernetes_name

pytestmark = [pytest.mark.alone, pytest.mark.kubernetes, pytest.mark.node]

OUTAGE_S = 60.0
LATE_S = 35.0
"""So long after its beginning a start is asked for."""
START_S = 90.0
"""The service's own bound of a start here: with `LATE_S` longer than the outage and what the cluster needs after it."""
BACK_S = 90.0
"""Within this everything is as before, once a part is back."""
COMMANDS = 3


@pytest.fixture(scope="module")
def cluster_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    data = tmp_path_factory.mktemp("outages") / "data"
    with own_namespace(data) as settings:
        environment = stack_environment(data) | settings | {"START_TIMEOUT_S": f"{START_S:g}"}
        observer = Cluster(settings["KUBECONFIG"], settings["KUBERNETES_NAMESPACE"])
        with world_of(environment, lambda _: observer, ready_s=120) as made:
            try:
                yield made
            finally:
                heal()


@pytest.fixture
def world(cluster_world: World) -> World:
    cluster_world.stack.wait_answering(60)
    return cluster_world


@pytest.fixture
async def ann(world: World) -> AsyncIterator[Person]:
    """Somebody of this test's own; the cluster is whole again before all that is theirs goes."""
    async with world.person() as person:
        try:
            yield person
        finally:
            await asyncio.to_thread(heal)
        await asyncio.to_thread(world.stack.wait_answering, 60)
        await person.leave()


@asynccontextmanager
async def away(part: str, how: Callable[[str], None]) -> AsyncIterator[None]:
    """The part is away while the context is open."""
    how(part)
    try:
        yield
    finally:
        await asyncio.to_thread(heal)


@dataclass(frozen=True)
class Look:
    """At a preview: when, what status came, and from whom."""

    at: float
    status: int
    server: str

    @property
    def is_served(self) -> bool:
        """Whether it was the project's own server that answered."""
        return self.status == 200 and self.server.startswith("SimpleHTTP")


class Visitor:
    """Somebody with a token who looks at a project's preview, through the Ingress."""

    def __init__(self, project: Project, token: str) -> None:
        port = project.world.environment["PREVIEW_PORT"]
        self._url = f"http://127.0.0.1:{port}/"
        host = f"user{project.owner.id}-project{project.id}.localhost:{port}"
        self._headers = {"Host": host, "X-Preview-Token": token}
        self.looks: list[Look] = []

    async def look(self, http: httpx.AsyncClient) -> bool:
        """Whether it is served now."""
        answer = await http.get(self._url, headers=self._headers)
        self.looks.append(Look(time.monotonic(), answer.status_code, answer.headers.get("server", "")))
        return self.looks[-1].is_served

    async def is_served(self) -> bool:
        return self.looks[-1].is_served

    def missed(self, since: float) -> list[Look]:
        """Since that moment; empty when there was an answer each time. There was one lately."""
        seen = [look for look in self.looks if look.at > since]
        assert seen[-1].at > time.monotonic() - 5
        return [look for look in seen if not look.is_served]


@asynccontextmanager
async def visited(project: Project) -> AsyncIterator[Visitor]:
    """A visitor who looks all the time that the context is open, and was served before that."""
    answer = await project.call("POST", "/preview-token")
    visitor = Visitor(project, answer.json()["token"])
    async with httpx.AsyncClient(timeout=15) as http:
        await until(partial(visitor.look, http), "the first answer")

        async def go_on() -> None:
            while True:
                await asyncio.sleep(0.5)
                await visitor.look(http)

        async with asyncio.TaskGroup() as group:
            looking = group.create_task(go_on())
            yield visitor
            looking.cancel()


async def fails_by_name(project: Project) -> str:
    """A command can't be run now, which is said in time; the words."""
    async with asyncio.timeout(45):
        answer = await project.call("POST", "/exec", json={"command": "echo ran >> ran.txt"})
    assert (answer.status_code, answer.json()["code"]) == (503, "runtime_unavailable"), answer.text
    return str(answer.json()["detail"])


async def end_is_noticed(project: Project) -> None:
    """A server that ends is told as ended, and starts again."""
    await asyncio.to_thread(project.world.observer.crash, project.owner.id, project.id)
    row = await project.until_state("failed", timeout_s=BACK_S)
    assert row["exit_code"] == 137
    await project.run("start")


async def is_there(project: Project, path: str) -> bool:
    return (project.folder / path).exists()


def in_namespace(world: World, *words: str) -> str:
    return kubectl("--namespace", world.environment["KUBERNETES_NAMESPACE"], *words)


def name_of(project: Project) -> str:
    return kubernetes_name(ProjectRef(project.owner.id, project.id))


# --- the kubelet ---


async def test_a_kubelet_that_hangs(world: World, ann: Person) -> None:
    running, stopped = await ann.start(), await ann.start()
    early, late = await ann.make(), await ann.make()
    servers = world.observer.servers(ann.id, running.id)
    [left] = world.observer.servers(ann.id, stopped.id)
    async with visited(running) as visitor:
        async with away("kubelet", hang):
            began = time.monotonic()
            await early.accept("start")
            await stopped.accept("stop")
            assert "node" in await fails_by_name(running)
            # Served as long as the node isn't lost; then its pods are taken off their Services.
            assert visitor.missed(began) == []
            await asyncio.to_thread(kubectl, "wait", "--for=condition=Ready=Unknown", "node/testbed", "--timeout=55s")
            await late.accept("start")
            # It is struck off, so that it isn't for ever about to stop.
            await stopped.until_state("stopped", timeout_s=BACK_S)
            assert "No node takes the dev server" in await until(partial(last_failure, world, late), "a cause")
            await until(partial(wants_none, world, early), "the end of the first start", START_S)
        row = await early.until_state("failed", timeout_s=BACK_S)
        assert row["reason"].startswith(f"It wasn't up within {START_S:g} s. An earlier try: The node testbed doesn't")
        await late.until_state("running", timeout_s=BACK_S)
        await until(visitor.is_served, "the preview", BACK_S)
    assert states(await running.log()) == ["starting", "running"]
    assert world.observer.servers(ann.id, running.id) == servers
    await until(partial(has_ended, left.id), "the end of what was struck off")
    await check_started_once(late)
    await early.run("start")
    await end_is_noticed(running)
    assert not (running.folder / "ran.txt").exists()


async def last_failure(world: World, project: Project) -> str:
    """What the newest attempt at the project's start has said, as operators see it."""
    client = await Client.connect(world.environment["TEMPORAL_ADDRESS"])
    shown = await client.get_workflow_handle(dev_server_id(project.id)).describe()
    return "".join(pending.last_failure.message for pending in shown.raw_description.pending_activities)


async def wants_none(world: World, project: Project) -> bool:
    asked = ("get", "deployment", name_of(project), "-o", "jsonpath={.spec.replicas}")
    return await asyncio.to_thread(in_namespace, world, *asked) == "0"


async def has_ended(pod: str) -> bool:
    engine = docker.from_env()
    try:
        return not engine.containers.list(filters={"label": f"io.kubernetes.pod.uid={pod}"})
    finally:
        engine.close()


# --- the API server ---


@pytest.mark.parametrize("how", [hang, kill])
async def test_an_api_server_that_is_away_for_a_minute(world: World, ann: Person, how: Callable[[str], None]) -> None:
    """The last ones here: an ingress controller that lost its watch may take more than a minute to find new pods."""
    running, asleep = await ann.start(), await ann.make()
    servers = world.observer.servers(ann.id, running.id)
    async with visited(running) as visitor:
        task = await begin(running, commands(COMMANDS, uuid4().hex, each_s=5))
        await until(partial(is_there, running, LOG), "a command of the agent's")
        long = {"command": "echo once >> once.txt; sleep 10; echo done", "timeout_s": 120}
        at_it = asyncio.create_task(running.call("POST", "/exec", json=long))
        await until(partial(is_there, running, "once.txt"), "another command")
        async with away("kube-apiserver", how):
            began = time.monotonic()
            await fails_by_name(running)
            await asyncio.sleep(began + LATE_S - time.monotonic())
            await asleep.accept("start")
            await asyncio.sleep(began + OUTAGE_S - time.monotonic())
            # Served all the time, and nobody has told anything of what can't be known.
            assert visitor.missed(began) == []
            assert states(await running.log()) == ["starting", "running"]
            assert states(await asleep.log()) == ["starting"]
        await asleep.until_state("running", timeout_s=BACK_S)
        ended = await task.until_ended(BACK_S)

    cut = await at_it
    if how is kill:
        assert (cut.status_code, cut.json()["code"]) == (503, "runtime_unavailable"), cut.text
    else:
        assert (cut.status_code, cut.json()["stdout"], cut.json()["exit_code"]) == (200, "done\n", 0), cut.text
    assert (running.folder / "once.txt").read_text() == "once\n"
    assert not (running.folder / "ran.txt").exists()
    check_worked_once(running, ended, task.of(await whole_log(running)), COMMANDS)
    await check_started_once(asleep)
    assert world.observer.servers(ann.id, running.id) == servers
    assert sorted(world.observer.leftovers(ann.id)) == sorted([name_of(running), name_of(asleep)] * 3)
    await end_is_noticed(running)
    assert states(await running.check_sound()) == ["starting", "running", "failed", "starting", "running"]
