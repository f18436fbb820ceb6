"""Local mode's toolchain: made once, whole or not at all, and enough for every template."""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from workers.stack.dependencies import DependenciesError, prepare_toolchain

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "templates"


async def test_the_toolchain_is_made_once_and_again_when_a_lock_file_changes(tmp_path: Path) -> None:
    templates = tmp_path / "templates"
    shutil.copytree(TEMPLATES, templates)
    toolchain = await prepare_toolchain(tmp_path / "data", templates)
    vite = toolchain / "node_modules" / ".bin" / "vite"
    assert "vite/8." in run(toolchain, str(vite), "--version")
    assert run(toolchain, "npm", "--version")
    assert "uvicorn" in run(toolchain, "python3", "-c", "import uvicorn; print(uvicorn.__name__)")
    assert "uvicorn" in run(toolchain, "uvicorn", "--version")

    mark = toolchain / "mark"
    mark.touch()
    assert await prepare_toolchain(tmp_path / "data", templates) == toolchain
    assert mark.exists()
    requirements = templates / "fastapi/files/requirements.txt"
    requirements.write_text(requirements.read_text() + "# changed\n")
    await prepare_toolchain(tmp_path / "data", templates)
    assert not mark.exists()
    assert vite.exists()


async def test_one_that_was_killed_in_the_middle_is_made_anew(tmp_path: Path) -> None:
    program = (
        "import asyncio; from pathlib import Path; from workers.stack.dependencies import prepare_toolchain; "
        f"asyncio.run(prepare_toolchain(Path({str(tmp_path)!r}), Path({str(TEMPLATES)!r})))"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, cwd=ROOT)
    async with asyncio.timeout(30):
        while not list(tmp_path.glob("toolchain.new-*/package.json")):
            assert process.returncode is None
            await asyncio.sleep(0.01)
    process.kill()
    await process.wait()
    assert not (tmp_path / "toolchain").exists()
    toolchain = await prepare_toolchain(tmp_path, TEMPLATES)
    assert "vite/8." in run(toolchain, str(toolchain / "node_modules/.bin/vite"), "--version")


async def test_a_failed_install_says_why_and_leaves_nothing_that_looks_ready(tmp_path: Path) -> None:
    templates = tmp_path / "templates"
    shutil.copytree(TEMPLATES, templates)
    (templates / "vite-react/files/package.json").write_text('{"name": "app", "dependencies": {"react": "^1.0.0"}}')
    with pytest.raises(DependenciesError, match="npm ci"):
        await prepare_toolchain(tmp_path / "data", templates)
    assert not (tmp_path / "data" / "toolchain").exists()


def run(toolchain: Path, *command: str) -> str:
    """The output of a command that finds its tools in the toolchain alone."""
    environment = {"PATH": f"{toolchain}/bin:/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout
