"""Somebody else stops, kills or removes a project's container: the state says so, and a start brings it back."""

import pytest

from tests.chaos.observers import Engine
from tests.chaos.world import Person, World, program, states

pytestmark = [pytest.mark.chaos, pytest.mark.docker]


@pytest.fixture
def engine(world: World) -> Engine:
    assert isinstance(world.observer, Engine)
    return world.observer


async def test_a_killed_container_has_failed_with_its_exit_code(world: World, ann: Person, engine: Engine) -> None:
    project = await ann.start()
    container = engine.container(ann.id, project.id)
    container.kill()
    row = await project.until_state("failed", timeout_s=10)
    assert (row["exit_code"], row["reason"]) == (137, "The command ended with exit code 137.")

    await project.run("start")
    assert engine.container(ann.id, project.id).id == container.id
    assert states(await project.check_sound()) == ["starting", "running", "failed", "starting", "running"]


async def test_a_stopped_container_has_failed_too(world: World, ann: Person, engine: Engine) -> None:
    """Nobody has asked the service to stop it."""
    project = await ann.start()
    engine.container(ann.id, project.id).stop(timeout=2)
    row = await project.until_state("failed", timeout_s=10)
    assert row["exit_code"] in {137, 143}
    await project.run("start")
    await project.check_sound()


async def test_a_removed_container_is_said_to_be_gone_and_made_anew(world: World, ann: Person, engine: Engine) -> None:
    project = await ann.start()
    container = engine.container(ann.id, project.id)
    container.remove(force=True)
    row = await project.until_state("failed", timeout_s=10)
    assert row["reason"] in {"Its container was removed from outside.", "The command ended with exit code 137."}

    await project.run("start")
    assert engine.container(ann.id, project.id).id != container.id
    assert states(await project.check_sound()) == ["starting", "running", "failed", "starting", "running"]


async def test_a_container_removed_while_its_server_is_waited_for(world: World, ann: Person, engine: Engine) -> None:
    project = await ann.make(program(20))
    await project.accept("start")
    await project.until_event("dev_server.stage", stage="probing")
    engine.container(ann.id, project.id).remove(force=True)
    row = await project.until_state("failed", timeout_s=15)
    assert row["reason"]
    assert (await ann.until_ended())[-1]["error"]["code"] in {"vanished", "crashed"}

    await project.write("studio.toml", program())
    await project.run("start")
    await project.check_sound()


async def test_a_removed_network_is_made_again(world: World, ann: Person, engine: Engine) -> None:
    project = await ann.start()
    await project.run("stop")
    [network] = engine.client.networks.list(names=engine.leftovers(ann.id))
    network.remove()
    await project.run("start")
    assert len(engine.leftovers(ann.id)) == 1
    await project.check_sound()
