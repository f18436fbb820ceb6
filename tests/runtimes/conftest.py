"""Drivers on real parts: a Docker engine with an image, a cluster on it, or processes of this machine."""

import dataclasses
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import docker
from activities.ports import DevServerSpec, ResourceLimits, Runtime
from activities.runtimes.open import KubernetesOptions, RuntimeMode, RuntimeSettings, open_runtime
from tests.namespaces import own_namespace
from workflows.contracts.names import ProjectRef, project_subpath

REAL_IMAGE = "studio-devserver:latest"
TESTBED_IMAGE = "studio-testbed-python:latest"
SERVE = 'exec python3 -u -m http.server "$PORT" --bind "$HOST"'
USER = 7


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """An observer of the engine that shares nothing with the driver."""
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture(scope="session")
def image(engine: docker.DockerClient) -> str:
    """The dev server image, or where it wasn't built a small one of Debian's packages with what drivers rely on."""
    for name in (REAL_IMAGE, TESTBED_IMAGE):
        if engine.images.list(name):
            return name
    script = f"mmdebstrap --variant=essential --include=python3,procps bookworm | docker import - {TESTBED_IMAGE}"
    subprocess.run(["bash", "-o", "pipefail", "-c", script], check=True, timeout=240, capture_output=True)
    return TESTBED_IMAGE


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Settings of a namespace of this session's own in the cluster, its volume a folder of this machine."""
    with own_namespace(tmp_path_factory.mktemp("cluster") / "data") as settings:
        yield {
            "kubeconfig": Path(settings["KUBECONFIG"]),
            "projects_root": Path(settings["PROJECTS_ROOT"]),
            "kubernetes": KubernetesOptions(namespace=settings["KUBERNETES_NAMESPACE"]),
        }


@dataclass
class House:
    """An installation: settings, and drivers opened on them, one after the other or at once."""

    settings: RuntimeSettings
    stack: AsyncExitStack
    made: list[ProjectRef] = field(default_factory=list)

    async def open(self) -> Runtime:
        """Another driver, as a restarted service would have it."""
        return await self.stack.enter_async_context(open_runtime(self.settings))

    def project(self, user_id: int = USER) -> ProjectRef:
        """A new project with an empty folder."""
        ref = ProjectRef(user_id, int(uuid4().int % 10**9) + 1)
        folder = self.folder(ref)
        folder.mkdir(parents=True)
        if os.geteuid() == 0:
            os.chown(folder, 1000, 1000)
        self.made.append(ref)
        return ref

    def folder(self, ref: ProjectRef) -> Path:
        """The project's files."""
        return self.settings.projects_root / project_subpath(ref)


def spec_of(ref: ProjectRef, command: str = SERVE, **changes: object) -> DevServerSpec:
    """A spec with small limits."""
    values: dict[str, object] = {
        "ref": ref,
        "command": command,
        "port": 8000,
        "limits": ResourceLimits(memory_mb=256, cpus=1.0, pids=64, open_files=1024),
    }
    return DevServerSpec(**{**values, **changes})  # type: ignore[arg-type]  # a test names only what it changes


@pytest.fixture(
    params=[
        pytest.param("docker", marks=pytest.mark.docker),
        pytest.param("kubernetes", marks=pytest.mark.kubernetes),
        "local",
    ]
)
def mode(request: pytest.FixtureRequest) -> RuntimeMode:
    """Each driver in turn."""
    return RuntimeMode(request.param)


@pytest.fixture
async def house(mode: RuntimeMode, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[House]:
    """An installation of its own, that leaves nothing behind."""
    image = "none" if mode is RuntimeMode.LOCAL else request.getfixturevalue("image")
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    settings = RuntimeSettings(
        mode=mode,
        instance=f"test{uuid4().hex[:8]}",
        data_dir=tmp_path / "data",
        projects_root=tmp_path / "projects",
        image=image,
    )
    if mode is RuntimeMode.KUBERNETES:
        settings = dataclasses.replace(settings, **request.getfixturevalue("cluster"))
    async with AsyncExitStack() as stack:
        made = House(settings, stack)
        yield made
        runtime = await made.open()
        for ref in made.made:
            await runtime.remove(ref)
        for user_id in {ref.user_id for ref in made.made}:
            await runtime.remove_user(user_id)
    shutil.rmtree(tmp_path, ignore_errors=True)


async def no_stage(stage: str) -> None:
    """Nobody listens."""
