"""A container's start is no change of the host's network to a browser on the same machine."""

import asyncio
import os
import socket
from pathlib import Path

import psutil
import pytest

import docker
from activities.runtimes.docker_spec import network_name
from activities.runtimes.open import RuntimeMode
from tests.runtimes.conftest import House, no_stage, spec_of

ADDRESSED_AFTER_S = 2.5
"""The kernel makes sure for up to two seconds that nobody else has a new link's address."""

pytestmark = pytest.mark.docker


@pytest.fixture
def mode() -> RuntimeMode:
    return RuntimeMode.DOCKER


async def test_no_interface_of_ours_gets_an_address_after_a_start(house: House, engine: docker.DockerClient) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may set up the host's interfaces")
    runtime = await house.open()
    ref = house.project()
    await runtime.launch(spec_of(ref), on_stage=no_stage)
    network = engine.networks.get(network_name(house.settings.instance, ref.user_id))
    bridge = f"br-{str(network.id)[:12]}"
    if not Path("/sys/class/net", bridge).exists():
        pytest.skip("the engine isn't on this machine")
    names = [bridge, *(port.name for port in Path("/sys/class/net", bridge, "brif").iterdir())]
    assert len(names) == 2
    await asyncio.sleep(ADDRESSED_AFTER_S)
    addresses = psutil.net_if_addrs()
    families = {name: {entry.family for entry in addresses[name]} - {psutil.AF_LINK} for name in names}
    assert families == {bridge: {socket.AF_INET}, names[1]: set()}
