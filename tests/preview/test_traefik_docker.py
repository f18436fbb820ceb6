"""Traefik finds containers by their labels: a real one of a template, with its WebSocket, and the page after it."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from websockets.asyncio.client import connect

from activities.runtimes.preview_labels import preview_labels
from api.preview.gate_key import gate_key
from storage.engine import Database
from storage.projects import ProjectRecord
from tests.preview.world import DOMAIN, House, free_port, house, proxy
from workers.stack.traefik_config import dynamic_config, static_config
from workflows.contracts.dev_servers import DevServerState
from workflows.contracts.names import LABEL_INSTANCE

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
IMAGE = "studio-devserver:latest"


@pytest.fixture
def instance() -> Iterator[str]:
    """A name of this installation; its containers are removed afterwards."""
    name = f"test-{uuid4().hex[:8]}"
    yield name
    ours = docker("ps", "--all", "--quiet", f"--filter=label={LABEL_INSTANCE}={name}").split()
    if ours:
        docker("rm", "--force", *ours)


@pytest.fixture(scope="session")
def image() -> str:
    """The image, built when it isn't there."""
    subprocess.run([ROOT / "docker/devserver/build"], check=True, timeout=800)
    return IMAGE


@pytest.fixture
async def by_labels(
    image: str, database: Database, database_url: str, tmp_path: Path, instance: str
) -> AsyncIterator[House]:
    """A house whose Traefik reads labels."""
    (tmp_path / "http").mkdir()
    (tmp_path / "docker").mkdir()
    async with house(database, database_url, tmp_path / "http") as running:
        port = free_port()
        api_url, key = f"http://127.0.0.1:{running.api_port}", gate_key(running.services.secrets)
        static = static_config(
            discovery="docker",
            listen=f"127.0.0.1:{port}",
            api_url=api_url,
            gate_key=key,
            instance=instance,
            dynamic_file=tmp_path / "docker" / "dynamic.yml",
        )
        dynamic = dynamic_config(preview_domain=DOMAIN, api_url=api_url, gate_key=key)
        async with proxy(tmp_path / "docker", static, dynamic, port):
            running.port = port
            yield running


async def test_a_container_is_found_by_its_labels_and_replaced_by_the_page_when_it_is_gone(
    by_labels: House, instance: str, tmp_path: Path
) -> None:
    project = await by_labels.new_project()
    token = await by_labels.token(project)
    name = start(project, instance, tmp_path / "app")
    await by_labels.set_server_state(project, DevServerState.RUNNING)
    page = await until(by_labels, project, token, 200)
    assert "<title>New app</title>" in page.text

    origin = ("Origin", f"http://{by_labels.host(project)}")
    client = await by_labels.get(project, "/@vite/client", X_Preview_Token=token)
    secret = client.text.partition('const wsToken = "')[2].partition('"')[0]
    assert secret
    url = f"ws://{by_labels.host(project)}/?token={secret}"
    headers = [origin, ("X-Preview-Token", token)]
    async with connect(url, host="127.0.0.1", proxy=None, additional_headers=headers, subprotocols=["vite-hmr"]) as hmr:  # type: ignore[list-item]  # a NewType of str
        assert "connected" in str(await hmr.recv())

    docker("kill", name)
    gone = await until(by_labels, project, token, 503)
    assert gone.headers["content-type"] == "application/problem+json"


async def test_another_installations_containers_are_not_served(by_labels: House, instance: str, tmp_path: Path) -> None:
    project = await by_labels.new_project()
    token = await by_labels.token(project)
    name = start(project, f"{instance}-other", tmp_path / "app")
    try:
        await asyncio.sleep(2)
        assert (await by_labels.get(project, X_Preview_Token=token)).status_code == 503
    finally:
        docker("rm", "--force", name)


def start(project: ProjectRecord, instance: str, folder: Path) -> str:
    """A dev server of the `vite-react` template, labelled as the docker driver labels it."""
    shutil.copytree(ROOT / "templates/vite-react/files", folder)
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, 1000, 1000)
    labels = preview_labels(project.ref, 5173, DOMAIN, "bridge") | {LABEL_INSTANCE: instance}
    options = [f"--label={name}={value}" for name, value in labels.items()]
    name = f"studio-test-{uuid4().hex[:12]}"
    docker(
        "run", "--detach", "--init", f"--name={name}", *options, "--read-only", "--cap-drop=ALL", "--tmpfs=/tmp:exec",
        f"--volume={folder}:/workspace/app", "--env=PORT=5173", IMAGE, "vite", "--configLoader", "native",
    )  # fmt: skip
    return name


async def until(running: House, project: ProjectRecord, token: str, status: int) -> httpx.Response:
    async with asyncio.timeout(30):
        while True:
            answer = await running.get(project, X_Preview_Token=token)
            if answer.status_code == status:
                return answer
            await asyncio.sleep(0.05)


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True, timeout=60).stdout
