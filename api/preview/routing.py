"""Where Traefik finds the dev servers that are processes: its dynamic configuration, made from what runs now."""

from collections.abc import Iterable
from typing import Any

from activities.ports import ContainerStatus
from workflows.contracts.names import container_name, preview_host

MIDDLEWARES = ("preview-auth@file", "preview-errors@file")


def routing_config(servers: Iterable[ContainerStatus], preview_domain: str) -> dict[str, Any]:
    """A router and a service for each server that has an address; Traefik's `http` provider polls this."""
    routers: dict[str, Any] = {}
    services: dict[str, Any] = {}
    for server in servers:
        if server.address is None:
            continue
        name = container_name(server.ref)
        host, port = server.address
        routers[name] = {
            "rule": f"Host(`{preview_host(server.ref, preview_domain)}`)",
            "entryPoints": ["web"],
            "middlewares": list(MIDDLEWARES),
            "service": name,
        }
        services[name] = {"loadBalancer": {"servers": [{"url": f"http://{host}:{port}"}]}}
    # Traefik refuses empty maps.
    return {"http": {"routers": routers, "services": services}} if routers else {}
