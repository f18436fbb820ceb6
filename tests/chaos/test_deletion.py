"""Deletions at the worst moment, and many at once: nothing is left."""

import asyncio
import random

import pytest

from tests.chaos.checks import big, check_nothing_left, delete, fork, half_copied, until_gone
from tests.chaos.world import Person, Project, World, program, until

pytestmark = [pytest.mark.chaos, pytest.mark.docker, pytest.mark.slow]


async def test_deletions_at_every_moment_of_a_life(world: World, ann: Person) -> None:
    source = await big(ann)
    starting, running, stopped = await ann.make(program(30)), await ann.start(), await ann.start()
    stopping = await ann.start("command = \"trap '' TERM; python3 -m http.server -b $HOST $PORT; sleep 9\"\n")
    await stopped.run("stop")
    await starting.accept("start")
    await starting.until_event("dev_server.stage", stage="probing")
    launched = await ann.make()
    copied, waiting = await fork(source), await fork(source)
    await waiting.accept("start")
    await until(lambda: half_copied(copied), "files in the copy")
    await stopping.accept("stop")
    await launched.accept("start")
    projects = [copied, waiting, starting, launched, running, stopping, stopped, source]
    async with asyncio.timeout(60):
        await asyncio.gather(*(delete(project) for project in projects))
        await asyncio.gather(*(until_gone(project) for project in projects))

    for project in projects:
        await check_nothing_left(project)
    assert world.observer.leftovers(ann.id) == []


async def test_a_worker_killed_during_a_deletion(world: World, ann: Person) -> None:
    projects = [await ann.start(), await ann.start(program(0.1))]
    source = await big(ann)
    await asyncio.gather(*(delete(project) for project in [*projects, source]))
    await asyncio.sleep(random.uniform(0, 0.4))
    said = world.kill("worker")

    await world.until_back("worker", said)
    for project in [*projects, source]:
        await until_gone(project)
        await check_nothing_left(project)
    assert world.observer.leftovers(ann.id) == []


async def one_life(ann: Person) -> Project:
    """Made, perhaps started, and deleted a moment later."""
    answer = await ann.http.post("/api/projects", json={"name": "p", "template": "static"})
    assert answer.status_code == 202, answer.text
    project = Project(ann, answer.json()["id"])
    await asyncio.sleep(random.uniform(0, 0.5))
    if random.random() < 0.7:
        await project.accept("start")
        await asyncio.sleep(random.uniform(0, 1.5))
    await delete(project)
    return project


async def test_a_storm_of_ten_short_lives(world: World, ann: Person) -> None:
    async with asyncio.timeout(90):
        projects = await asyncio.gather(*(one_life(ann) for _ in range(10)))
        for project in projects:
            await until_gone(project)
            await check_nothing_left(project)
    assert world.observer.servers(ann.id) == []
    assert world.observer.leftovers(ann.id) == []
    assert list((world.files / "users" / str(ann.id) / "projects").iterdir()) == []
