"""The engine's ends of containers' links on this machine, kept quiet.

A second after a container's start the kernel gives its link an IPv6 address, which nobody uses: our networks are
IPv4's. A browser on the same machine takes that for a change of its network and drops what it is loading
(`ERR_NETWORK_CHANGED`), just when the preview is being opened.
"""

import ipaddress
import socket
from contextlib import suppress
from pathlib import Path

import psutil

_INTERFACES = Path("/sys/class/net")
_IPV6 = "ipv6/conf"
_NETWORK_SETTINGS = (Path("/run/host/net"), Path("/proc/sys/net"))
"""The first that is there: a container on the host's network can't write its own `/proc/sys`, and has it mounted."""


def quieten(address: str) -> None:
    """Take IPv6 from the bridge that this container's address is on, and from all that is plugged into it.

    Does nothing where the engine isn't on this machine, or where this process may not.
    """
    bridge = _bridge_of(ipaddress.IPv4Address(address))
    if bridge is None:
        return
    settings = next((path for path in _NETWORK_SETTINGS if path.is_dir()), _NETWORK_SETTINGS[-1]) / _IPV6
    with suppress(OSError):
        for name in (bridge, *(port.name for port in (_INTERFACES / bridge / "brif").iterdir())):
            setting = settings / name / "disable_ipv6"
            if setting.read_text().strip() == "0":
                setting.write_text("1")


def _bridge_of(address: ipaddress.IPv4Address) -> str | None:
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if (
                entry.family == socket.AF_INET
                and entry.netmask
                and address in ipaddress.IPv4Network(f"{entry.address}/{entry.netmask}", strict=False)
                and (_INTERFACES / name / "brif").is_dir()
            ):
                return name
    return None
