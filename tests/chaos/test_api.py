"""The API dies in the middle of requests: what it had accepted is done without another request, the rest never was."""

import asyncio
import itertools
import random
import time
from contextlib import AsyncExitStack

import httpx
import pytest

from tests.chaos.world import Person, Project, SecondApi, World, states

pytestmark = [pytest.mark.chaos, pytest.mark.docker, pytest.mark.slow]

WINDOW_S = 0.06


async def test_an_api_killed_right_after_it_accepted(world: World, ann: Person) -> None:
    project = await ann.make()
    await project.accept("start")
    said = world.kill("api")

    row = await project.until_state("running", timeout_s=30)
    assert row["generation"] == 1
    await world.until_back("api", said)
    assert [operation["state"] for operation in await ann.until_ended()] == ["succeeded"] * 2
    assert states(await project.check_sound()) == ["starting", "running"]
    assert project.starts() == 1


async def request(http: httpx.AsyncClient, path: str, body: dict[str, str] | None = None) -> int | None:
    """Status of a POST that is sent within the next 60 ms, None when the API died before it answered."""
    await asyncio.sleep(random.uniform(0, WINDOW_S))
    try:
        return (await http.post(path, json=body)).status_code
    except httpx.TransportError:
        return None


async def one_death(api: SecondApi, ann: Person, starting: list[Project], answered: int) -> list[int | None]:
    """Start these projects and make two more; their API is killed after so many answers, or somewhere before."""
    async with ann.at(api.url) as http:
        for _ in range(2):  # the first one opens what commands need
            began = time.monotonic()
            await http.post(f"/api/projects/{starting[0].id}/stop", headers={"Prefer": "wait=30"})
        took = time.monotonic() - began
        requests = [request(http, f"/api/projects/{project.id}/start") for project in starting]
        requests += [request(http, "/api/projects", {"name": "new", "template": "static"}) for _ in range(2)]
        sent = [asyncio.create_task(each) for each in requests]
        for each in itertools.islice(asyncio.as_completed(sent), answered):
            await each
        await asyncio.sleep(random.uniform(0, took))
        api.process.kill()
        await api.process.wait()
        async with asyncio.timeout(20):
            return await asyncio.gather(*sent)


async def test_an_api_killed_in_the_middle_of_requests(world: World, ann: Person) -> None:
    projects = [await ann.make() for _ in range(6)]
    answers: list[int | None] = []
    async with AsyncExitStack() as stack:
        apis = await asyncio.gather(*(stack.enter_async_context(world.api()) for _ in range(3)))
        for n, api in enumerate(apis):
            answers += await one_death(api, ann, projects[2 * n : 2 * n + 2], answered=n)
    assert {202} <= set(answers) <= {202, None}

    operations = await ann.until_ended(timeout_s=40)
    assert {operation["state"] for operation in operations} == {"succeeded"}
    rows = await world.fetch(
        "SELECT id, projects.state, generation, observed_generation, action, dev_servers.state AS server FROM projects "
        "JOIN dev_servers ON project_id = id WHERE user_id = $1 ORDER BY id", ann.id
    )  # fmt: skip
    assert {row["state"] for row in rows} == {"ready"}
    # Each row has its operation, each operation its row: an accepted request is both or neither.
    assert len(operations) == len(rows) + sum(row["generation"] for row in rows)
    accepted = sum(status == 202 for status in answers)
    assert len(operations) - len(projects) - 2 * len(apis) >= accepted
    for row in rows:
        project = Project(ann, row["id"])
        started = row["action"] == "start"
        assert row["observed_generation"] == row["generation"]
        assert row["server"] == ("running" if started else "stopped")
        await project.check_sound()
        assert project.starts() == started
        assert len(world.observer.servers(ann.id, project.id)) == started
        assert (project.folder / "index.html").exists()
