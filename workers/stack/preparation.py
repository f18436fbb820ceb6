"""What dev servers need before the first one starts, and how all of them are stopped when the stack ends."""

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process, create_subprocess_exec
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from workers.settings import DeploymentMode, Settings
from workers.stack.console import say
from workers.stack.data_directory import DataDirectory
from workers.stack.engine import has_image
from workers.stack.privileges import die_with_parent

_ROOT = Path(__file__).parents[2]
_STOP_TIMEOUT_S = 40.0


async def prepare_dev_servers(settings: Settings, mode: DeploymentMode) -> None:
    """Make the image (docker) or the templates' dependencies (local) unless they are there; progress is said.

    A failure is said, too, and doesn't end the stack: all but starting a dev server works without them.
    """
    match mode:
        case DeploymentMode.DOCKER:
            await _prepare_image(settings)
        case DeploymentMode.LOCAL:
            await _run_preparation("packages", [sys.executable, "-m", "workers.stack.dependencies"], "make up again")
        case DeploymentMode.KUBERNETES:
            say("image", f"{settings.devserver_image}: the cluster's to pull")


async def _prepare_image(settings: Settings) -> None:
    image = settings.devserver_image
    if await has_image(image):
        say("image", f"{image} is there")
        return
    say("image", f"{image} isn't there yet; making it takes a minute or two, once")
    await _run_preparation("image", [str(_ROOT / "docker" / "devserver" / "build")], "make image")


async def _run_preparation(name: str, command: list[str], remedy: str) -> None:
    began = time.monotonic()
    process = await create_subprocess_exec(
        *die_with_parent(command), stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, start_new_session=True
    )
    try:
        async for line in _lines(process.stdout):
            say(name, line)
        code = await process.wait()
    finally:
        _kill_group(process)
    if code == 0:
        say(name, f"ready after {time.monotonic() - began:.1f} s")
    else:
        say(name, f"could not be made (exit code {code}): dev servers won't start until `{remedy}` has succeeded")


async def stop_dev_servers(environment: Mapping[str, str], data: DataDirectory) -> None:
    """Stop every dev server of this stack in order, so that none is found crashed by the next one. Bounded."""
    with (data.logs / "stop.log").open("wb") as log:
        process = await create_subprocess_exec(
            *die_with_parent([sys.executable, "-m", "workers.stack.dev_servers"]),
            stdin=DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment}, start_new_session=True,
        )  # fmt: skip
    try:
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            code = await process.wait()
    except TimeoutError:
        code = -1
    finally:
        _kill_group(process)
    if code != 0:
        say("stack", f"some dev servers may still run; see {data.logs / 'stop.log'}")


async def _lines(output: asyncio.StreamReader | None) -> AsyncIterator[str]:
    while output is not None and (line := await output.readline()):
        yield line.decode(errors="replace").rstrip()


def _kill_group(process: Process) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
