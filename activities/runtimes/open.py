"""The one place that knows where dev servers live, and imports no more than that place's driver."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from activities.ports import Runtime


class RuntimeMode(StrEnum):
    """Where dev servers live: `DEPLOYMENT_MODE`."""

    DOCKER = "docker"
    LOCAL = "local"


@dataclass(frozen=True)
class RuntimeSettings:
    """Settings of all drivers; each takes what it needs.

    `instance`: this installation's name, `[a-z0-9-]`: two of them may share an engine. `data_dir`: the local driver
    keeps its state in `run/dev-servers` below it. `projects_root`: the files, as this process sees them;
    `engine_projects_root`: as the engine's host does, None: the same. `toolchain`: folder with the templates'
    `node_modules` for the local driver. `uid` None: this process's own when it isn't root, else 1000.
    """

    mode: RuntimeMode
    instance: str
    data_dir: Path
    projects_root: Path
    image: str = "studio-devserver:latest"
    preview_domain: str = "localhost"
    network_pool: str = "10.202.0.0/16"
    engine_url: str = "unix:///var/run/docker.sock"
    engine_projects_root: str | None = None
    egress_allow: tuple[str, ...] = ()
    toolchain: Path | None = None
    uid: int | None = None


@asynccontextmanager
async def open_runtime(settings: RuntimeSettings) -> AsyncIterator[Runtime]:
    """The driver for these settings, closed on the way out; its containers live on. Touches nothing by itself."""
    runtime = _driver(settings)
    try:
        yield runtime
    finally:
        await runtime.close()


def _driver(settings: RuntimeSettings) -> Runtime:
    if settings.mode is RuntimeMode.DOCKER:
        from activities.runtimes.docker import DockerRuntime, DockerSettings

        return DockerRuntime(
            DockerSettings(
                instance=settings.instance,
                projects_root=settings.projects_root,
                image=settings.image,
                preview_domain=settings.preview_domain,
                network_pool=settings.network_pool,
                engine_url=settings.engine_url,
                engine_projects_root=settings.engine_projects_root,
                egress_allow=settings.egress_allow,
                uid=settings.uid,
            )
        )
    from activities.runtimes.local import LocalRuntime, LocalSettings

    return LocalRuntime(
        LocalSettings(
            instance=settings.instance,
            data_dir=settings.data_dir,
            projects_root=settings.projects_root,
            preview_domain=settings.preview_domain,
            toolchain=settings.toolchain,
            uid=settings.uid,
        )
    )
