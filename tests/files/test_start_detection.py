"""How a project starts, read from a real project folder."""

import json
import os
import shutil
from pathlib import Path

import pytest

from activities.files.start_detection import StartPlan, detect
from activities.files.store import DiskFileStore
from tests.files.conftest import REF
from workers.templates import template_folders
from workflows.contracts.errors import InvalidError
from workflows.contracts.names import ProjectRef

VITE = {"dependencies": {"vite": "^8"}}


@pytest.fixture
async def files(tmp_path: Path) -> DiskFileStore:
    store = DiskFileStore(tmp_path, None)
    await store.create(REF, None)
    return store


def write(files: DiskFileStore, **contents: str) -> None:
    for name, content in contents.items():
        path = files.root(REF) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


async def refused(files: DiskFileStore) -> InvalidError:
    with pytest.raises(InvalidError) as caught:
        await detect(files, REF)
    return caught.value


@pytest.mark.parametrize("name", template_folders())
async def test_every_template_tells_how_it_starts(files: DiskFileStore, name: str) -> None:
    ref = ProjectRef(1, 1)
    await files.create(ref, template_folders()[name])
    plan = await detect(files, ref)
    assert plan.command
    assert 1024 < plan.port < 65536
    # Without its studio.toml it is recognised as well, and needs no install.
    (files.root(ref) / "studio.toml").unlink()
    (files.root(ref) / "package-lock.json").unlink(missing_ok=True)
    detected = await detect(files, ref)
    assert (detected.port, detected.install) == (plan.port, None)
    assert '"$PORT"' in detected.command


async def test_studio_toml_says_it_all(files: DiskFileStore) -> None:
    settings = 'command = "node server.js"\nport = 4000\ninstall = "npm ci"\n'
    write(files, **{"studio.toml": settings, "package.json": json.dumps(VITE), "package-lock.json": "{}"})
    assert await detect(files, REF) == StartPlan(
        "node server.js", 4000, "npm ci", ("package.json", "package-lock.json")
    )


async def test_what_studio_toml_leaves_open_is_detected(files: DiskFileStore) -> None:
    write(files, **{"studio.toml": "port = 4000\n", "package.json": json.dumps(VITE)})
    plan = await detect(files, REF)
    assert plan.command.startswith("vite ")
    assert (plan.port, plan.install, plan.install_inputs) == (4000, "npm install", ("package.json",))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("command = ", "isn't valid TOML"),
        ("comand = 'x'", "unknown key 'comand'"),
        ("command = 7", "command must be a text"),
        ("command = ' '", "must not be empty"),
        ("command = ['npm', 'start']", "command must be a text"),
        ("port = '5173'", "without quotes"),
        ("port = 0", "from 1 to 65535"),
        ("port = 65536", "from 1 to 65535"),
        ("port = true", "port must be a number"),
        ("install = false", "install must be a text"),
        ("x" * 70_000, "larger"),
    ],
)
async def test_a_wrong_studio_toml_is_explained(files: DiskFileStore, settings: str, told: str) -> None:
    write(files, **{"studio.toml": settings, "index.html": ""})
    error = await refused(files)
    assert error.code == "bad_studio_toml"
    assert told in error.detail


async def test_a_studio_toml_that_is_no_text_is_explained(files: DiskFileStore) -> None:
    (files.root(REF) / "studio.toml").write_bytes(b"\xff\xfe")
    assert (await refused(files)).code == "bad_studio_toml"


@pytest.mark.parametrize(
    ("package", "command", "port"),
    [
        ({"dependencies": {"next": "15", "vite": "1"}}, "next dev --hostname ", 3000),
        ({"dependencies": {"react-scripts": "5"}}, "HOST=", 3000),
        ({"devDependencies": {"vite": "8"}}, "vite --host ", 5173),
        ({"devDependencies": {"vite": "8"}, "scripts": {"dev": "vite"}}, "vite --host ", 5173),
        ({"devDependencies": {"vite": "8"}, "scripts": {"dev": "tsc && vite -m x"}}, "npm run dev -- --host ", 5173),
        ({"devDependencies": {"vite": "8"}, "scripts": "odd"}, "vite --host ", 5173),
    ],
)
async def test_javascript_projects(files: DiskFileStore, package: object, command: str, port: int) -> None:
    write(files, **{"package.json": json.dumps(package), "index.html": "", "main.py": "app = FastAPI()"})
    plan = await detect(files, REF)
    assert plan.command.startswith(command)
    assert plan.port == port
    assert "0.0.0.0" in plan.command
    assert plan.install == "npm install"
    write(files, **{"package-lock.json": "{}"})
    assert (await detect(files, REF)).install == "npm ci"


@pytest.mark.parametrize(
    ("path", "source", "target"),
    [
        ("main.py", "from fastapi import FastAPI\napp = FastAPI()\n", "main:app"),
        ("app.py", "import fastapi\nservice: fastapi.FastAPI = fastapi.FastAPI(title='x')\n", "app:service"),
        ("app/main.py", "api = FastAPI(\n)\n", "app.main:api"),
    ],
)
async def test_python_projects(files: DiskFileStore, path: str, source: str, target: str) -> None:
    write(files, **{path: source, "requirements.txt": "fastapi\nnumpy\n"})
    plan = await detect(files, REF)
    assert plan.command.startswith(f"uvicorn {target} --host ")
    assert plan.port == 8000
    assert plan.install is not None
    assert plan.install_inputs == ("requirements.txt",)


async def test_a_static_site(files: DiskFileStore) -> None:
    write(files, **{"index.html": "<p>", "main.py": "print('no FastAPI here')", "package.json": "{}"})
    plan = await detect(files, REF)
    assert plan.command.startswith("vite --host ")
    assert plan.install is None


async def test_what_cannot_be_seen_is_said_with_what_to_do(files: DiskFileStore) -> None:
    error = await refused(files)
    assert error.code == "cannot_detect_start"
    assert "studio.toml" in error.detail
    for package in ("{", "[]", "[" * 100_000):
        write(files, **{"package.json": package})
        assert (await refused(files)).code == "cannot_detect_start"


async def test_traps_in_the_place_of_files_are_no_files(files: DiskFileStore) -> None:
    root = files.root(REF)
    os.mkfifo(root / "studio.toml")
    (root / "package.json").symlink_to("/etc/passwd")
    (root / "main.py").mkdir()
    assert (await refused(files)).code == "cannot_detect_start"
    shutil.rmtree(root / "main.py")
