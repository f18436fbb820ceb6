"""What everything stands on dies and comes back: Postgres, Temporal, Traefik."""

import asyncio
from contextlib import aclosing

import httpx
import pytest

from tests.chaos.world import Event, Person, Project, World, program, states, until

pytestmark = [pytest.mark.chaos, pytest.mark.docker, pytest.mark.slow]


async def watch(project: Project, seen: list[Event]) -> None:
    """Follow as a browser does: whenever the stream ends, again after the last event that came."""
    while True:
        try:
            async with asyncio.timeout(1.5), aclosing(project.follow(seen[-1].seq if seen else 0)) as events:
                async for event in events:
                    seen.append(event)  # noqa: PERF401 -- one by one: the next stream begins after the last of them
        except (TimeoutError, httpx.HTTPError):
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("stage", ["creating", "probing"])
async def test_a_killed_postgres_comes_back_and_the_start_goes_on(world: World, ann: Person, stage: str) -> None:
    """With a client that follows, loses its stream every 1.5 s, and resumes where it was."""
    project, seen = await ann.make(program(2)), list[Event]()
    watching = asyncio.create_task(watch(project, seen))
    await project.accept("start")
    await project.until_event("dev_server.stage", stage=stage)
    said = world.kill("postgres")

    await world.until_back("postgres", said)
    assert [row["state"] for row in await ann.until_ended()] == ["succeeded", "succeeded"]
    await project.run("stop")
    log = await project.check_sound()
    assert states(log) == ["starting", "running", "stopping", "stopped"]
    assert project.starts() == 1

    async def all_seen() -> bool:
        return len(seen) >= len(log)

    await until(all_seen, "the events at the client")
    watching.cancel()
    assert seen == log


async def test_a_killed_temporal_comes_back_and_starts_and_stops_go_on(world: World, ann: Person) -> None:
    early, late, stopping = await ann.make(), await ann.make(program(2)), await ann.start()
    await late.accept("start")
    await late.until_event("dev_server.stage", stage="probing")
    await early.accept("start")
    await stopping.accept("stop")
    await early.until_event("dev_server.stage", stage="creating")
    said = world.kill("temporal")

    await world.until_back("temporal", said)
    await ann.until_ended()
    for project in (early, late):
        assert states(await project.check_sound()) == ["starting", "running"]
        assert project.starts() == 1
    assert states(await stopping.check_sound()) == ["starting", "running", "stopping", "stopped"]
    assert [server.runs for server in world.observer.servers(ann.id, stopping.id)] == [False]


async def test_previews_come_back_with_a_killed_proxy(world: World, ann: Person) -> None:
    project = await ann.start()
    token = (await project.call("POST", "/preview-token")).json()["token"]
    port = world.stack.environment["PREVIEW_PORT"]
    headers = {"Host": f"user{ann.id}-project{project.id}.localhost:{port}", "X-Preview-Token": token}

    async def opens() -> bool:
        async with httpx.AsyncClient() as client:
            try:
                answer = await client.get(f"http://127.0.0.1:{port}/studio.toml", headers=headers)
            except httpx.TransportError:
                return False
        return answer.is_success and "http.server" in answer.text

    await until(opens, "the preview", timeout_s=10)
    said = world.kill("traefik")
    await world.until_back("traefik", said)
    await until(opens, "the preview again", timeout_s=10)
