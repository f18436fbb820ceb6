"""Commands come in storms, over two APIs, in any order: the last accepted one decides, and nothing is left open."""

import asyncio
import random

import pytest

from tests.chaos.checks import check_ended_as_the_last_one_says, command
from tests.chaos.world import Person, Project, World

pytestmark = [pytest.mark.chaos, pytest.mark.docker]


async def most_running(project: Project) -> int:
    """The most containers that were seen to run at once, looked at until cancelled."""
    most = 0
    try:
        while True:
            servers = await asyncio.to_thread(project.world.observer.servers, project.owner.id, project.id)
            most = max(most, sum(server.runs for server in servers))
            await asyncio.sleep(0.05)
    except asyncio.CancelledError:
        return most


@pytest.mark.parametrize(
    ("actions", "within_s"),
    [
        (["start", "stop"] * 5, 0.0),
        (["start", "stop"] * 5, 1.5),
        (["start", "stop", "restart", "start", "stop", "restart", "restart", "stop", "start", "start"], 1.0),
    ],
    ids=["at once", "over a while", "with restarts"],
)
async def test_ten_commands_end_as_the_last_accepted_one_says(
    world: World, ann: Person, actions: list[str], within_s: float
) -> None:
    project = await ann.make()
    async with world.api() as other, ann.at(other.url) as elsewhere:
        watching = asyncio.create_task(most_running(project))
        for _ in range(3):
            random.shuffle(actions)
            clients = [ann.http, elsewhere] * 5
            await asyncio.gather(
                *(command(http, project, action, within_s) for http, action in zip(clients, actions, strict=True))
            )
            await check_ended_as_the_last_one_says(project, await ann.until_ended())
        watching.cancel()
        assert await watching <= 1
    await project.check_sound()


async def test_commands_while_the_project_is_being_made(world: World, ann: Person) -> None:
    answer = await ann.http.post("/api/projects", json={"name": "p", "template": "static"})
    project = Project(ann, answer.json()["id"])
    await asyncio.gather(*(command(ann.http, project, action, 0.1) for action in ["start", "stop"] * 2 + ["start"]))
    await check_ended_as_the_last_one_says(project, await ann.until_ended())
    await project.check_sound()
