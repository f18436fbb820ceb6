"""The public internet, told from all that is nearer."""

import asyncio

import pytest

from activities.addresses import HostRefusedError, is_public, public_addresses


def test_which_addresses_are_public() -> None:
    for address in ("140.82.121.3", "1.1.1.1", "2606:50c0:8000::153"):
        assert is_public(address)
    for address in (
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.1.1", "0.0.0.0"),
        *("224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.0.1", "198.18.0.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
        *("64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::", "fec0::1"),
    ):
        assert not is_public(address), address


async def test_one_private_address_refuses_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    async def both(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(2, 1, 6, "", ("1.1.1.1", 443)), (2, 1, 6, "", ("10.0.0.1", 443))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", both)
    with pytest.raises(HostRefusedError):
        await public_addresses("mixed.example.com", 443)
