"""A bridge for each user: their own address range, and no word between the containers on it."""

import asyncio
import hashlib
import ipaddress
from collections.abc import Iterator
from typing import Any, Final

from aiodocker import Docker
from aiodocker.exceptions import DockerError

from activities.errors import ResourcesExhaustedError
from activities.runtimes.docker_faults import NOT_FOUND, faults
from activities.runtimes.docker_spec import network_name
from workflows.contracts.names import LABEL_INSTANCE, LABEL_USER

_PREFIX: Final = 28
_ATTEMPTS: Final = 20
_LOOKS: Final = 40
_LOOK_S: Final = 0.05
_IN_USE: Final = 403
_GONE_OR_IN_USE: Final = {_IN_USE, NOT_FOUND}


class UserNetworks:
    """Networks of one installation, out of a pool of /28s (13 running containers for each user)."""

    def __init__(self, docker: Docker, *, instance: str, pool: str) -> None:
        self._docker = docker
        self._instance = instance
        self._pool = ipaddress.IPv4Network(pool)

    async def ensure(self, user_id: int) -> None:
        """Have exactly one network for the user, also when two processes ask at once.

        Raises `ResourcesExhaustedError` when the pool is used up.
        """
        name = network_name(self._instance, user_id)
        with faults():
            # One look for both: were the name asked for first, a network made in between would only be avoided.
            networks = await self._docker.networks.list()
            found = [network for network in networks if network["Name"] == name]
            if len(found) > 1:
                await self._settle(name)
            if found:
                return
            for subnet in self._candidates(_subnets(networks), user_id):
                if await self._create(name, user_id, subnet) or await self._await_owner(name, subnet):
                    await self._settle(name)
                    return
        raise ResourcesExhaustedError(f"No address range is free in {self._pool} for another user's network.")

    async def remove(self, user_id: int) -> None:
        """Remove the user's network; one in use stays, one that isn't there is success."""
        with faults():
            for identifier in await self._ids(network_name(self._instance, user_id)):
                await self._delete(identifier)

    async def _create(self, name: str, user_id: int, subnet: ipaddress.IPv4Network) -> bool:
        try:
            await self._docker.networks.create(network_config(name, self._instance, user_id, subnet))
        except DockerError as error:
            message = str(error.message).lower()
            if "already exists" in message:
                return True
            if "overlap" in message:  # another process, or another installation, was faster
                return False
            raise
        return True

    async def _await_owner(self, name: str, subnet: ipaddress.IPv4Network) -> bool:
        """Whether the one who was faster with this range is the same user's other start.

        The engine reserves the range first and shows the network a moment later.
        """
        for _ in range(_LOOKS):
            if await self._ids(name):
                return True
            if any(subnet.overlaps(other) for other in _subnets(await self._docker.networks.list())):
                return bool(await self._ids(name))
            await asyncio.sleep(_LOOK_S)
        return False

    async def _settle(self, name: str) -> None:
        """The engine lets two creations at once make two networks of one name: the lowest id stays."""
        for identifier in (await self._ids(name))[1:]:
            await self._delete(identifier)

    async def _delete(self, identifier: str) -> None:
        try:
            network = await self._docker.networks.get(identifier)
            await network.delete()
        except DockerError as error:
            if error.status not in _GONE_OR_IN_USE:
                raise

    async def _ids(self, name: str) -> list[str]:
        found = await self._docker.networks.list(filters={"name": [name]})
        return sorted(network["Id"] for network in found if network["Name"] == name)

    def _candidates(self, taken: list[ipaddress.IPv4Network], user_id: int) -> Iterator[ipaddress.IPv4Network]:
        """Free ranges, beginning at a place of the user's own so that two users seldom want the same."""
        count = 2 ** (_PREFIX - self._pool.prefixlen)
        base = int(self._pool.network_address)
        seed = hashlib.sha256(f"{self._instance}/{user_id}".encode()).digest()
        start = int.from_bytes(seed[:4], "big")
        attempts = 0
        for step in range(count):
            address = base + ((start + step) % count) * 2 ** (32 - _PREFIX)
            subnet = ipaddress.IPv4Network((address, _PREFIX))
            if any(subnet.overlaps(other) for other in taken):
                continue
            yield subnet
            attempts += 1
            if attempts == _ATTEMPTS:
                return


def _subnets(networks: list[dict[str, Any]]) -> list[ipaddress.IPv4Network]:
    taken = []
    for network in networks:
        for entry in (network.get("IPAM") or {}).get("Config") or []:
            subnet = ipaddress.ip_network(entry.get("Subnet", "0.0.0.0/32"), strict=False)
            if isinstance(subnet, ipaddress.IPv4Network):
                taken.append(subnet)
    return taken


def network_config(name: str, instance: str, user_id: int, subnet: ipaddress.IPv4Network) -> dict[str, Any]:
    """Body of the engine's `networks/create`."""
    return {
        "Name": name,
        "CheckDuplicate": True,
        "Driver": "bridge",
        "IPAM": {"Driver": "default", "Config": [{"Subnet": str(subnet)}]},
        "Options": {"com.docker.network.bridge.enable_icc": "false"},
        "Labels": {LABEL_INSTANCE: instance, LABEL_USER: str(user_id)},
    }
