"""Whether a Docker engine answers, told with the standard library alone: the choice comes before any driver."""

import asyncio
import os
from http import HTTPStatus
from urllib.parse import quote, urlsplit

from workers.settings import DeploymentMode
from workers.stack.readiness import http_status

_DEFAULT_ENGINE = "unix:///var/run/docker.sock"


async def choose_mode(wanted: DeploymentMode | None) -> tuple[DeploymentMode, str]:
    """Where dev servers will run, and why: what was asked for, else Docker when it answers, else local."""
    if wanted is not None:
        return wanted, "DEPLOYMENT_MODE says so"
    address = _engine()
    if await _get("/_ping") == HTTPStatus.OK:
        return DeploymentMode.DOCKER, f"a Docker engine answers at {address}"
    return DeploymentMode.LOCAL, (
        f"no Docker engine answers at {address}; dev servers run as processes here, for a single trusted user"
    )


async def has_image(name: str) -> bool:
    """Whether the engine has the image."""
    return await _get(f"/images/{quote(name, safe='/:')}/json") == HTTPStatus.OK


def _engine() -> str:
    return os.environ.get("DOCKER_HOST") or _DEFAULT_ENGINE


async def _get(path: str) -> int | None:
    address = urlsplit(_engine())
    if address.scheme == "unix":
        return await http_status(asyncio.open_unix_connection(address.path), "docker", path)
    return await http_status(asyncio.open_connection(address.hostname, address.port or 2375), "docker", path)
