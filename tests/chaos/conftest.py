"""One stack for all tests here, ended after the last of them: each begins and leaves it ready."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.chaos.observers import Engine
from tests.chaos.world import Person, World, world_of
from tests.workers.stacks import stack_environment


@pytest.fixture(scope="package")
def docker_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    environment = stack_environment(tmp_path_factory.mktemp("chaos") / "data")
    with world_of(environment, lambda world: Engine(world.instance)) as made:
        yield made


@pytest.fixture
def world(docker_world: World) -> World:
    """The stack, ready, whatever the test before has done to it."""
    docker_world.stack.wait_answering(60)
    return docker_world


@pytest.fixture
async def ann(world: World) -> AsyncIterator[Person]:
    """Somebody of this test's own; all that is theirs goes after it."""
    async with world.person() as person:
        yield person
        await asyncio.to_thread(world.stack.wait_answering, 60)
        await person.leave()
