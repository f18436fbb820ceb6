"""The API dies in the middle of requests: what it had accepted is done without another request, the rest never was."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import httpx
import pytest

from storage.engine import plain_dsn
from tests.chaos.world import Person, Project, SecondApi, World, states, until

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


STALL = """
CREATE FUNCTION stall() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NEW; END';
CREATE TRIGGER stall BEFORE UPDATE OF status ON idempotency_keys
    FOR EACH ROW WHEN (NEW.status IS NOT NULL) EXECUTE FUNCTION stall();
"""


@asynccontextmanager
async def stalled_answers(world: World, count: int) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
    """No answer is kept, and so none sent, while this is open; gives whether so many are due."""
    connection = await asyncpg.connect(plain_dsn(world.environment["DATABASE_URL"]), timeout=10)
    try:
        await connection.execute("SELECT pg_advisory_lock(4711)")
        await connection.execute(STALL)

        async def due() -> bool:
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted"
            return bool(await connection.fetchval(waiting) == count)

        yield due
    finally:
        await connection.execute("SELECT pg_advisory_unlock(4711)")
        await connection.execute("DROP FUNCTION stall CASCADE")
        await connection.close()


async def keyed(http: httpx.AsyncClient, path: str, body: dict[str, str]) -> httpx.Response | None:
    """A POST under a key that follows from its path, None when the API died before it answered."""
    headers = {"Idempotency-Key": path, "Prefer": "wait=30"}
    try:
        return await http.post(path, json=body, headers=headers)
    except httpx.TransportError:
        return None


async def answered(http: httpx.AsyncClient, path: str, body: dict[str, str]) -> httpx.Response:
    """The same, sent again until it is answered, as a client does."""
    async with asyncio.timeout(75):
        while (answer := await keyed(http, path, body)) is None or answer.status_code == 409:
            assert answer is None or answer.json()["code"] == "idempotency_in_progress"
            await asyncio.sleep(0.5)
        return answer


async def test_an_api_killed_between_its_commit_and_its_answer(world: World, ann: Person) -> None:
    source = await ann.make()
    requests = [("/api/projects", {"name": "made", "template": "static"})]
    requests += [(f"/api/projects/{source.id}/fork", {"name": "copied"})]
    async with stalled_answers(world, len(requests)) as due:
        sent = [asyncio.create_task(keyed(ann.http, *request)) for request in requests]
        await until(due, "two answers")
        made = {
            row["name"]: row["id"] for row in await world.fetch("SELECT * FROM projects WHERE user_id = $1", ann.id)
        }
        said = world.kill("api")
        assert await asyncio.gather(*sent) == [None, None]
    assert set(made) == {"p", "made", "copied"}

    await world.until_back("api", said)
    for _ in range(2):
        answers = await asyncio.gather(*(answered(ann.http, *request) for request in requests))
        assert [answer.status_code for answer in answers] == [201, 201]
        assert [answer.json()["state"] for answer in answers] == ["ready", "ready"]
        assert {answer.json()["name"]: answer.json()["id"] for answer in answers} | {"p": source.id} == made
    assert all("idempotency-replayed" in answer.headers for answer in answers)
    assert [operation["state"] for operation in await ann.until_ended()] == ["succeeded"] * 3
    assert len((await ann.http.get("/api/projects")).json()["items"]) == 3
