"""Each template starts on the dev server's image as the service starts it: hardened, and without a network."""

import asyncio
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "templates"
UID = 1000
HARDENING = (
    "--init --network=none --read-only --cap-drop=ALL --security-opt=no-new-privileges --pids-limit=256 --memory=1g "
    f"--memory-swap=1g --tmpfs=/tmp:exec --tmpfs=/home/dev:exec,mode=1777 --user={UID}:{UID}"
).split()
FIRST_WORDS = {
    "vite-react": ("<title>New app</title>", "/src/main.jsx"),
    "static": ("<title>New site</title>", "Your site is live"),
    "fastapi": ("<title>New service</title>", "Your service is live"),
}


@dataclass(frozen=True)
class Start:
    """What a project's `studio.toml` says."""

    command: str
    port: int
    install: str | None = None


@pytest.fixture(scope="session")
def image() -> str:
    """The image, built when it isn't there."""
    subprocess.run([ROOT / "docker/devserver/build"], check=True, timeout=800)
    return "studio-devserver:latest"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    folder.mkdir()
    return folder


@pytest.fixture
def container() -> Iterator[str]:
    name = f"studio-test-{uuid4().hex[:12]}"
    yield name
    subprocess.run(["docker", "rm", "--force", name], check=False, capture_output=True)


def copy(template: str, project: Path) -> Start:
    shutil.copytree(TEMPLATES / template / "files", project, dirs_exist_ok=True)
    for path in (project, *project.rglob("*")):
        shutil.chown(path, UID, UID)
    return Start(**tomllib.loads((project / "studio.toml").read_text()))


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], check=check, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("template", sorted(FIRST_WORDS))
async def test_a_template_serves_at_once_and_installs_nothing(
    template: str, image: str, project: Path, container: str
) -> None:
    start = copy(template, project)
    before = {path.relative_to(project) for path in project.rglob("*")}
    docker(
        "run", "--detach", "--name", container, *HARDENING, f"--volume={project}:/workspace/app",
        f"--env=PORT={start.port}", "--env=STUDIO_PREVIEW_HOST=user1-project2.preview.example",
        image, "sh", "-c", f"{start.install or ':'} && exec {start.command}",
    )  # fmt: skip
    page = await _page(container, f"http://127.0.0.1:{start.port}/", "user1-project2.preview.example")
    assert all(words in page for words in FIRST_WORDS[template])
    made = {path.relative_to(project) for path in project.rglob("*")} - before
    assert all(path.parts[:1] == ("node_modules",) for path in made)
    assert not (project / "node_modules" / "vite").exists()


async def test_every_template_is_described_and_holds_no_registrys_address() -> None:
    folders = {path.parent.name for path in TEMPLATES.glob("*/template.toml")}
    assert folders == set(FIRST_WORDS)
    for name in folders:
        described = tomllib.loads((TEMPLATES / name / "template.toml").read_text())
        assert set(described) == {"name", "title", "description"}
        assert described["name"] == name
        for lock in (TEMPLATES / name).rglob("package-lock.json"):
            assert '"resolved"' not in lock.read_text()


@pytest.mark.parametrize(
    ("template", "inputs"),
    [("vite-react", ("package.json", "package-lock.json")), ("fastapi", ("requirements.txt",))],
)
def test_changed_dependencies_are_installed(template: str, inputs: tuple[str, ...], image: str, project: Path) -> None:
    start = copy(template, project)
    assert start.install
    run = ["run", "--rm", *HARDENING, f"--volume={project}:/workspace/app", image, "sh", "-c", start.install]
    assert docker(*run, check=False).returncode == 0
    for name in inputs:
        whole = (project / name).read_text()
        (project / name).write_text(whole.replace('"react": "^', '"left-pad": "^1", "react": "^') + "\n")
        # Without a network it can't succeed: that it tries is what is shown. Bounded, since package managers retry.
        attempt = ["run", "--rm", "--env=NPM_CONFIG_FETCH_RETRIES=0", "--env=PIP_RETRIES=0", *run[2:-1]]
        tools = f"npm() {{ echo tried; }}; python3() {{ echo tried; false; }}; {start.install}"
        assert "tried" in docker(*attempt, tools, check=False).stdout
        (project / name).write_text(whole)


async def _page(container: str, url: str, host: str) -> str:
    async with asyncio.timeout(30):
        while True:
            answer = docker(
                "exec", container, "curl", "--silent", "--fail", "--header", f"Host: {host}", url, check=False
            )
            if answer.returncode == 0:
                return answer.stdout
            state = docker("inspect", "--format={{.State.Running}}", container).stdout.strip()
            assert state == "true", docker("logs", container).stdout
            await asyncio.sleep(0.1)
