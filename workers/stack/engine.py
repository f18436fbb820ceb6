"""Whether a Docker engine answers, told with the standard library alone: the choice comes before any driver."""

import asyncio
from http import HTTPStatus
from urllib.parse import quote, urlsplit

from workers.settings import DeploymentMode, Settings
from workers.stack.readiness import http_status

_DEFAULT_PORT = 2375


async def choose_mode(settings: Settings) -> tuple[DeploymentMode, str]:
    """Where dev servers will run, and why: what was asked for, else Docker when it answers, else local."""
    engine = settings.docker_host
    if settings.deployment_mode is not None:
        return settings.deployment_mode, "DEPLOYMENT_MODE says so"
    if await _get(engine, "/_ping") == HTTPStatus.OK:
        return DeploymentMode.DOCKER, f"a Docker engine answers at {engine}"
    return DeploymentMode.LOCAL, (
        f"no Docker engine answers at {engine}; dev servers run as processes here, for a single trusted user"
    )


async def has_image(engine: str, name: str) -> bool:
    """Whether the engine has the image."""
    return await _get(engine, f"/images/{quote(name, safe='/:')}/json") == HTTPStatus.OK


async def _get(engine: str, path: str) -> int | None:
    address = urlsplit(engine)
    if address.scheme == "unix":
        return await http_status(asyncio.open_unix_connection(address.path), "docker", path)
    return await http_status(asyncio.open_connection(address.hostname, address.port or _DEFAULT_PORT), "docker", path)
