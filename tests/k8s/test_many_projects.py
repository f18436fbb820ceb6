"""A hundred projects created at once on one node: each comes to run, none fails, and its API server isn't stormed."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from tests.cluster import kubectl
from tests.k8s.crowd import Crowd, asked, crowd_of, until
from tests.namespaces import own_namespace
from tests.workers.stacks import RunningStack, running_stack, stack_environment

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(600)]

PEOPLE, EACH = 4, 25
PROJECTS = PEOPLE * EACH
MEMORY_MB = 160
"""What each is promised: a node of 24 GB holds a hundred, beside what else runs on it."""
UP_S, DOWN_S = 300.0, 240.0
TRY_S = 60.0
"""A start that the node hasn't begun by then is tried again, and asks for its objects again."""
REST_S = 10.0


@pytest.fixture
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    data = tmp_path_factory.mktemp("many") / "data"
    with own_namespace(data) as cluster:
        environment = stack_environment(data) | cluster | {"DEVSERVER_MEMORY_MB": str(MEMORY_MB)}
        with running_stack(environment, 180) as running:
            yield running


@pytest.fixture
async def crowd(stack: RunningStack) -> AsyncIterator[Crowd]:
    async with crowd_of(stack, PEOPLE) as made:
        yield made


async def test_a_hundred_projects_at_once(
    crowd: Crowd, stack: RunningStack, record_property: Callable[[str, object], None]
) -> None:
    before = await asked()
    await crowd.make(EACH)

    # What isn't there yet is on its way, visibly; none fails, however long it waits for the ninety-nine others.
    assert {operation["state"] for operation in await crowd.operations()} <= {"running", "succeeded"}
    coming = await crowd.until_running(UP_S)
    assert len(coming.after_s) == PROJECTS
    assert {operation["state"] for operation in await crowd.operations()} == {"succeeded"}

    # Two watches for all of them; and of each project, its objects are asked for once a try and looked at a few times.
    async def two_watches() -> bool:  # one that has come to its end begins anew a moment later
        return (await asked()).since(before).watches == {"pods": 1, "deployments": 1}

    up = (await asked()).since(before)
    await until(two_watches, "two watches", 20)
    last_s = max(coming.after_s.values())
    record_property("measured", f"{PROJECTS} projects run after {last_s:.0f} s; the API server was asked {up}")
    tries = 1 + last_s / TRY_S
    assert 3 * PROJECTS <= up.count("APPLY") <= 3 * PROJECTS * tries, up
    assert up.calls["LIST", "pods"] <= 4 * PROJECTS * tries, up
    assert up.calls["GET", "deployments"] <= 4 * PROJECTS * tries, up
    assert up.calls["LIST", "deployments"] + up.calls["LIST", "events"] <= last_s, up

    pages = await crowd.pages()
    assert {page.status_code for page in pages} == {200}
    assert all("Your site is live" in page.text for page in pages)

    # Once they run, nobody asks for them one by one.
    at_rest = await asked()
    await asyncio.sleep(REST_S)
    rest = (await asked()).since(at_rest)
    assert rest.calls.total() <= REST_S, rest
    await until(two_watches, "two watches", 20)

    before = await asked()
    await crowd.delete(DOWN_S)
    down = (await asked()).since(before)
    record_property("measured", f"and {down} until they were gone")
    assert down.count("DELETE") <= 8 * PROJECTS, down
    assert down.calls["LIST", "pods"] <= 6 * PROJECTS, down

    async def nothing_left() -> bool:
        namespace = stack.environment["KUBERNETES_NAMESPACE"]
        return not kubectl("-n", namespace, "get", "deployments,pods,services,ingresses", "-o", "name")

    await until(nothing_left, "the node tidies up", 120)
    owned = stack.data / "projects" / "users"
    assert [path for path in owned.glob("*/projects/*") if path.is_dir()] == []
