"""The one place that knows where dev servers live, and imports no more than that place's driver."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

from activities.ports import Runtime


class RuntimeMode(StrEnum):
    """Where dev servers live: `DEPLOYMENT_MODE`."""

    DOCKER = "docker"
    KUBERNETES = "kubernetes"
    LOCAL = "local"


@dataclass(frozen=True)
class KubernetesOptions:
    """Where in the cluster dev servers live, and how previews reach them: see `KubernetesContainerSettings`."""

    namespace: str = "studio-projects"
    volume_claim: str = "studio-projects"
    ingress_class: str = "traefik"
    gateway: Literal["traefik", "nginx"] = "traefik"
    middlewares: tuple[str, ...] = ("preview-auth@file", "preview-errors@file")
    auth_url: str | None = None
    tls_secret: str | None = None
    cert_issuer: str | None = None
    runtime_class: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RuntimeSettings:
    """Settings of all drivers; each takes what it needs.

    `instance`: this installation's name, `[a-z0-9-]`: two of them may share an engine. `data_dir`: the local driver
    keeps its state in `run/dev-servers` below it. `projects_root`: the files, as this process sees them;
    `engine_projects_root`: as the engine's host does, None: the same. `toolchain`: folder with the templates'
    `node_modules` for the local driver. `uid` None: this process's own when it isn't root, else 1000. `kubeconfig`
    None: the cluster that this process runs in.
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
    kubeconfig: Path | None = None
    kubernetes: KubernetesOptions = KubernetesOptions()


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
    if settings.mode is RuntimeMode.KUBERNETES:
        return _kubernetes(settings)
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


def _kubernetes(settings: RuntimeSettings) -> Runtime:
    from activities.runtimes.kubernetes import KubernetesRuntime, KubernetesSettings
    from activities.runtimes.kubernetes_spec import KubernetesContainerSettings

    options = settings.kubernetes
    uid = settings.uid if settings.uid is not None else (os.getuid() or 1000)
    return KubernetesRuntime(
        KubernetesSettings(
            projects_root=settings.projects_root,
            kubeconfig=settings.kubeconfig,
            containers=KubernetesContainerSettings(
                instance=settings.instance,
                namespace=options.namespace,
                image=settings.image,
                preview_domain=settings.preview_domain,
                volume_claim=options.volume_claim,
                uid=uid,
                gid=uid if settings.uid is not None or os.getuid() == 0 else os.getgid(),
                ingress_class=options.ingress_class,
                gateway=options.gateway,
                middlewares=options.middlewares,
                auth_url=options.auth_url,
                tls_secret=options.tls_secret,
                cert_issuer=options.cert_issuer,
                runtime_class=options.runtime_class,
                node_selector=options.node_selector,
            ),
        )
    )
