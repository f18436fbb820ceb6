"""What containers may reach: the internet and the host's name servers, and nothing of the house.

Docker keeps bridges apart, but lets a container reach whatever its host binds to 0.0.0.0, the networks that the host
stands in, and the cloud's metadata address. Two chains of our own, hooked in before Docker's, refuse these.
"""

import asyncio
import hashlib
import ipaddress
import os
import shutil
import socket
from pathlib import Path
from typing import Any, Final

import psutil
import structlog
from aiodocker import Docker
from aiodocker.exceptions import DockerError

from activities.errors import RuntimeFault, RuntimeUnavailableError
from activities.runtimes.docker_faults import FORBIDDEN, faults

_PRIVATE: Final = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
)
_TIMEOUT_S: Final = 20.0
_ANOTHERS: Final = "another's"
_log = structlog.get_logger(__name__)


class Firewall:
    """Keeps the host's rules as they must be; idempotent, and safe from two processes at once."""

    def __init__(self, docker: Docker, *, pool: str, image: str, allow: tuple[str, ...] = ()) -> None:
        self._docker = docker
        self._script = firewall_script(pool, name_servers(), allow)
        self._image = image
        self.state: str = "unknown"

    async def ensure(self) -> None:
        """Put the rules in place. `state` then tells `full`, or `partial: …` with the reason.

        Or `another's`, where the way to the engine is one to look and not to make: who has another one keeps the rules.
        """
        if self.state == _ANOTHERS:
            return
        try:
            if os.geteuid() == 0 and shutil.which("iptables") and await self._on_the_host():
                await self._run_here()
            else:
                await self._run_in_container()
        except (RuntimeFault, OSError) as error:
            if _is_forbidden(error):
                _log.info("the host's rules are left to who may set them", reason=str(error))
                self.state = _ANOTHERS
                return
            if not self.state.startswith("partial"):
                _log.warning("containers can reach the host's own networks", reason=str(error))
            self.state = f"partial: {error}"
        else:
            self.state = "full"

    async def _on_the_host(self) -> bool:
        """Whether this process stands in the engine's network: the default bridge's own address is here."""
        with faults():
            bridge = await (await self._docker.networks.get("bridge")).show()
        subnets = [ipaddress.ip_network(entry["Subnet"]) for entry in bridge["IPAM"]["Config"] or []]
        bridge_name = (bridge.get("Options") or {}).get("com.docker.network.bridge.name", "docker0")
        ours = [
            ipaddress.ip_address(address.address)
            for address in psutil.net_if_addrs().get(bridge_name, [])
            if address.family == socket.AF_INET
        ]
        return any(address in subnet for address in ours for subnet in subnets)

    async def _run_here(self) -> None:
        process = await asyncio.create_subprocess_exec(
            "sh",
            "-c",
            self._script,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                _, errors = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise RuntimeUnavailableError("iptables hangs") from None
        if process.returncode:
            raise RuntimeUnavailableError(f"iptables refuses: {errors.decode(errors='replace').strip()[-300:]}")

    async def _run_in_container(self) -> None:
        with faults():
            container = await self._docker.containers.create(one_shot_config(self._image, self._script))
            try:
                await container.start()
                async with asyncio.timeout(_TIMEOUT_S):
                    result = await container.wait()
            finally:
                await container.delete(force=True)
        if result["StatusCode"]:
            raise RuntimeUnavailableError("iptables can be run neither here nor in a container of the image")


def _is_forbidden(error: Exception) -> bool:
    return isinstance(error.__cause__, DockerError) and error.__cause__.status == FORBIDDEN


def one_shot_config(image: str, script: str) -> dict[str, Any]:
    """A container that sets the host's rules and ends."""
    return {
        "Image": image,
        "User": "0:0",
        "Entrypoint": ["sh", "-c", script],
        "Cmd": [],
        "HostConfig": {"NetworkMode": "host", "CapDrop": ["ALL"], "CapAdd": ["NET_ADMIN", "NET_RAW"]},
    }


def firewall_script(pool: str, servers: list[str], allow: tuple[str, ...]) -> str:
    """Shell text that sets the two chains, each in one transaction, and hooks them in once."""
    stem = f"STUDIO-{hashlib.sha256(pool.encode()).hexdigest()[:8].upper()}"
    passed = ["-m conntrack --ctstate ESTABLISHED,RELATED -j RETURN"]
    passed += [f"-d {server} -p {kind} --dport 53 -j RETURN" for server in servers for kind in ("udp", "tcp")]
    reject = "-j REJECT --reject-with icmp-admin-prohibited"
    inward = [f"-A {stem}-IN {rule}" for rule in [*passed, reject]]
    outward = [f"-A {stem}-FWD {rule}" for rule in [*passed, *(f"-d {network} -j RETURN" for network in allow)]]
    outward += [f"-A {stem}-FWD -d {network} {reject}" for network in _PRIVATE]
    rules = "\n".join(["*filter", f":{stem}-IN - [0:0]", f":{stem}-FWD - [0:0]", *inward, *outward, "COMMIT"])
    return f"""set -e
iptables-restore --wait 5 --noflush <<'RULES'
{rules}
RULES
hook() {{ iptables -w 5 -C "$1" -s {pool} -j "$2" 2>/dev/null || iptables -w 5 -I "$1" 1 -s {pool} -j "$2"; }}
hook INPUT {stem}-IN
if iptables -w 5 -n -L DOCKER-USER >/dev/null 2>&1; then hook DOCKER-USER {stem}-FWD; else hook FORWARD {stem}-FWD; fi
"""


def name_servers(path: Path = Path("/etc/resolv.conf")) -> list[str]:
    """The host's IPv4 name servers: the engine passes containers' questions on to them."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    servers = []
    for line in lines:
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                servers.append(str(ipaddress.IPv4Address(words[1])))
            except ValueError:  # IPv6: containers have none
                continue
    return servers
