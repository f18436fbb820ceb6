"""The same promises where dev servers are processes of this machine, or pods of a cluster."""

import asyncio
import logging
import random
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from uuid import uuid4

import pytest

from tests.chaos.checks import (
    big,
    check_ended_as_the_last_one_says,
    check_nothing_left,
    check_started_once,
    command,
    delete,
    fork,
    half_copied,
    until_gone,
)
from tests.chaos.killing import SEED, Killer
from tests.chaos.observers import Cluster, Machine, Observer
from tests.chaos.tasks import begin, check_worked_once, commands
from tests.chaos.watchers import SseWatcher, TaskWatcher, check_same, following, whole_log
from tests.chaos.world import Person, World, program, states, until, world_of
from tests.namespaces import own_namespace
from tests.workers.stacks import stack_environment

log = logging.getLogger(__name__)

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

READY_S = 240
"""Local mode installs the templates' packages first."""


@pytest.fixture(scope="module", params=["local", pytest.param("kubernetes", marks=pytest.mark.kubernetes)])
def other_world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    data = tmp_path_factory.mktemp(f"chaos-{request.param}") / "data"
    with ExitStack() as stack:
        observer: Observer = Machine(data)
        settings = {"DEPLOYMENT_MODE": "local"}
        if request.param == "kubernetes":
            settings = stack.enter_context(own_namespace(data))
            observer = Cluster(settings["KUBECONFIG"], settings["KUBERNETES_NAMESPACE"])
        yield stack.enter_context(world_of(stack_environment(data) | settings, lambda _: observer, ready_s=READY_S))


@pytest.fixture
def world(other_world: World) -> World:
    other_world.stack.wait_answering(60)
    return other_world


async def test_a_killed_worker_leaves_its_work_to_its_successor(world: World, ann: Person) -> None:
    source, slow, fresh = await big(ann), await ann.make(program(6)), await ann.make()
    await slow.accept("start")
    await slow.until_event("dev_server.stage", stage="probing")
    copy = await fork(source)
    await until(lambda: half_copied(copy), "files in the copy")
    await fresh.accept("start")
    await fresh.until_event("dev_server.stage", stage="starting")
    said = world.kill("worker")

    await world.until_back("worker", said)
    assert {row["state"] for row in await ann.until_ended()} == {"succeeded"}
    for project in (slow, fresh):
        await check_started_once(project)
    await copy.check_sound()
    await copy.run("start")


async def test_servers_outlive_an_ended_worker_and_are_watched_by_the_next(world: World, ann: Person) -> None:
    project = await ann.start()
    servers, log = world.observer.servers(ann.id), await project.log()
    assert len(servers) == 1
    said = world.kill("worker", signal.SIGTERM)
    await world.until_back("worker", said)
    await asyncio.sleep(1)
    assert (world.observer.servers(ann.id), await project.log()) == (servers, log)

    world.observer.crash(ann.id, project.id)
    row = await project.until_state("failed", timeout_s=15)
    assert row["exit_code"] == 137
    await project.run("start")
    assert states(await project.check_sound()) == ["starting", "running", "failed", "starting", "running"]


async def test_storms_of_commands_end_as_the_last_accepted_one_says(world: World, ann: Person) -> None:
    project = await ann.make()
    for within_s in (0.0, 1.0):
        actions = random.sample(["start", "stop"] * 5, 10)
        await asyncio.gather(*(command(ann.http, project, action, within_s) for action in actions))
        await check_ended_as_the_last_one_says(project, await ann.until_ended())
    await project.check_sound()


async def test_deletions_while_they_start_and_run_leave_nothing(world: World, ann: Person) -> None:
    starting, running, fresh = await ann.make(program(30)), await ann.start(), await ann.make()
    await starting.accept("start")
    await starting.until_event("dev_server.stage", stage="probing")
    await fresh.accept("start")
    projects = [starting, running, fresh]
    await asyncio.gather(*(delete(project) for project in projects))
    for project in projects:
        await until_gone(project)
        await check_nothing_left(project)
    assert world.observer.leftovers(ann.id) == []


async def test_a_task_runs_each_command_once_though_its_workers_are_killed(world: World, ann: Person) -> None:
    count = 30
    log.warning("CHAOS_SEED=%d", SEED)  # shown when it fails
    project = await ann.start()
    task = await begin(project, commands(count, uuid4().hex))
    all_of_it, own = SseWatcher(ann, f"/api/projects/{project.id}/events"), TaskWatcher(ann, task.id)
    killer = Killer(world, all_of_it.step, count)
    async with following(all_of_it, own), asyncio.TaskGroup() as group:
        group.create_task(killer.part("worker", 4))
        group.create_task(killer.part("api", 1))
        ended = await task.until_ended(200)
        await own.until_seen(await project.last_seq())
    assert killer.kills == 5
    check_same(own.seen, task.of(await whole_log(project)))
    check_worked_once(project, ended, own.seen, count)
