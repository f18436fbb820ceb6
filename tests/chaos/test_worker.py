"""The worker dies, freezes, or is ended while it works: another one finishes, and nothing happens twice."""

import asyncio
import os
import signal

import pytest

from tests.chaos.checks import MANY, big, check_started_once, fork, half_copied
from tests.chaos.observers import Engine
from tests.chaos.world import Person, World, program, states, until

pytestmark = [pytest.mark.chaos, pytest.mark.docker, pytest.mark.slow]


async def test_a_worker_killed_in_the_midst_of_everything(world: World, ann: Person) -> None:
    """While one project is copied, one has just got its first stage, and one is waited for until it answers."""
    source, slow, fresh = await big(ann), await ann.make(program(6)), await ann.make()
    await slow.accept("start")
    await slow.until_event("dev_server.stage", stage="probing")
    copy = await fork(source)
    await until(lambda: half_copied(copy), "files in the copy")
    await fresh.accept("start")
    await fresh.until_event("dev_server.stage", stage="creating")
    assert await half_copied(copy)
    said = world.kill("worker")

    await world.until_back("worker", said)
    assert {row["state"] for row in await ann.until_ended()} == {"succeeded"}
    for project in (slow, fresh):
        await check_started_once(project)
    log = await copy.check_sound()
    assert [event.data["state"] for event in log] == ["provisioning", "provisioning", "ready"]
    assert sum(1 for path in copy.folder.rglob("many/*/*") if path.read_text() == "small\n") == MANY
    await copy.run("start")


async def test_a_worker_killed_as_the_container_starts(world: World, ann: Person) -> None:
    project = await ann.make()
    await project.accept("start")
    await project.until_event("dev_server.stage", stage="starting")
    said = world.kill("worker")

    await world.until_back("worker", said)
    assert [row["state"] for row in await ann.until_ended()][-1] == "succeeded"
    await check_started_once(project)


async def test_a_worker_killed_during_a_stop(world: World, ann: Person) -> None:
    project = await ann.start(
        "command = \"trap 'sleep 2; exit 0' TERM; python3 -m http.server -b $HOST $PORT & wait\"\n"
    )
    await project.accept("stop")
    await asyncio.sleep(0.5)
    said = world.kill("worker")

    await world.until_back("worker", said)
    await ann.until_ended()
    log = await project.check_sound()
    assert states(log) == ["starting", "running", "stopping", "stopped"]
    assert [server.runs for server in world.observer.servers(ann.id)] == [False]


async def test_an_ended_worker_leaves_servers_running_and_its_successor_adopts_them(world: World, ann: Person) -> None:
    projects = [await ann.start(), await ann.start()]
    before = [await project.log() for project in projects]
    servers = world.observer.servers(ann.id)
    said = world.kill("worker", signal.SIGTERM)
    await world.until_back("worker", said)
    await asyncio.sleep(3)

    assert world.observer.servers(ann.id) == servers
    assert [await project.log() for project in projects] == before
    for project in projects:
        world.observer.crash(ann.id, project.id)
        row = await project.until_state("failed", "stopped")
        assert (row["state"], row["exit_code"]) == ("failed", 137)
        await project.check_sound()


async def test_a_server_stopped_from_outside_while_no_worker_is_there(world: World, ann: Person) -> None:
    assert isinstance(world.observer, Engine)
    project = await ann.start()
    container = world.observer.container(ann.id, project.id)
    said = world.kill("worker")
    container.kill()
    assert not any("ready again" in line for line in world.stack.lines[said:]), "the new worker was faster"

    await world.until_back("worker", said)
    row = await project.until_state("failed")
    assert (row["exit_code"], row["reason"]) == (137, "The command ended with exit code 137.")
    await project.run("start")
    assert states(await project.check_sound()) == ["starting", "running", "failed", "starting", "running"]
    assert world.observer.container(ann.id, project.id).id == container.id


async def test_a_frozen_worker_thaws_after_another_has_done_its_work(world: World, ann: Person) -> None:
    """It is in the middle of two starts, and goes on with them when they have long been finished."""
    probed, created = await ann.make(program(3)), await ann.make()
    await probed.accept("start")
    await probed.until_event("dev_server.stage", stage="probing")
    await created.accept("start")
    await created.until_event("dev_server.stage", stage="creating")
    frozen = world.stack.pid("worker")
    os.kill(frozen, signal.SIGSTOP)
    try:
        assert [(await project.row())["state"] for project in (probed, created)] == ["starting", "starting"]
        async with world.worker():
            for project in (probed, created):
                await project.until_state("running", timeout_s=100)
            os.kill(frozen, signal.SIGCONT)
            await asyncio.sleep(3)
            for project in (probed, created):
                await check_started_once(project)
            await created.run("stop")
    finally:
        os.kill(frozen, signal.SIGCONT)
    await probed.run("stop")
    for project in (probed, created):
        assert states(await project.check_sound()) == ["starting", "running", "stopping", "stopped"]
