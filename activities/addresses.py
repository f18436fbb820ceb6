"""Which hosts the service connects to for somebody else: those of the public internet alone.

A name is looked up once, all its addresses are checked, and the connection goes to one of exactly these: a name that
answers differently the second time gains nothing.
"""

import asyncio
import ipaddress
import socket
from dataclasses import dataclass
from typing import Protocol

from workflows.contracts.errors import InvalidError, UnavailableError

_IPV6_PUBLIC = ipaddress.ip_network("2000::/3")
"""All that has been given out; NAT64, site-local and the like lie outside."""


class HostRefusedError(InvalidError):
    """There is no such host, or it isn't on the public internet. The detail is a clause: "there is no host 'x'"."""

    default_code = "bad_host"


@dataclass(frozen=True)
class Endpoint:
    """Where a connection really goes: an IP address that was checked, and a port."""

    address: str
    port: int


class Resolver(Protocol):
    """From a host as it was written to where it may be connected to."""

    async def resolve(self, host: str, port: int) -> list[Endpoint]:
        """At least one. Raises `HostRefusedError`, or `UnavailableError` when names can't be looked up now."""


class PublicResolver(Resolver):
    """The public internet by this machine's own resolver; IPv4 first, which works where IPv6 is half set up."""

    async def resolve(self, host: str, port: int) -> list[Endpoint]:
        """See `Resolver`."""
        found = await public_addresses(host, port)
        return [Endpoint(address, port) for address in sorted(found, key=lambda address: ":" in address)]


async def public_addresses(host: str, port: int) -> list[str]:
    """All addresses of the host, if each of them is public; one private among them refuses the host.

    Raises `HostRefusedError`, or `UnavailableError` when names can't be looked up now.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise UnavailableError(f"The name {host!r} can't be looked up now.") from error
        raise HostRefusedError(f"there is no host {host!r}") from error
    except UnicodeError as error:
        raise HostRefusedError(f"{host!r} is no host name") from error
    addresses = sorted({str(item[4][0]) for item in found})
    if not addresses or not all(is_public(address) for address in addresses):
        raise HostRefusedError(f"{host!r} isn't on the public internet")
    return addresses


def is_public(address: str) -> bool:
    """Whether the address is one of the public internet, seen through IPv6's ways to write an IPv4 one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip not in _IPV6_PUBLIC or ip.sixtofour is not None or ip.teredo is not None:
            return False  # the last two would be tunnelled to an IPv4 address of the name's choice
    return ip.is_global and not ip.is_multicast and not ip.is_reserved
