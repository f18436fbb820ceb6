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
from workers.stack.dependencies import DependenciesError, prepare_toolchain
from workers.stack.engine import has_image
from workers.stack.privileges import die_with_parent

_ROOT = Path(__file__).parents[2]
_WITHOUT = "Dev servers won't start until"
_SHORT_S = 1.0
_STOP_TIMEOUT_S = 40.0


async def prepare_dev_servers(settings: Settings, mode: DeploymentMode) -> None:
    """Make the image (docker) or the templates' dependencies (local) unless they are there; progress is said.

    A failure is said, too, and doesn't end the stack: all but starting a dev server works without them. A cluster gets
    its images itself, or had them from `make cluster`.
    """
    if mode is DeploymentMode.DOCKER:
        await _prepare_image(settings)
    elif mode is DeploymentMode.LOCAL:
        await _prepare_toolchain(settings)


async def _prepare_toolchain(settings: Settings) -> None:
    began = time.monotonic()
    task = asyncio.create_task(prepare_toolchain(settings.data_dir, _ROOT / "templates"))
    done, _ = await asyncio.wait([task], timeout=_SHORT_S)
    if not done:
        say("packages", "installing what the templates need, once")
    try:
        await task
    except DependenciesError as error:
        say("packages", f"{error}\n{_WITHOUT} `make up` has installed them")
    else:
        say("packages", f"ready after {time.monotonic() - began:.1f} s")


async def _prepare_image(settings: Settings) -> None:
    image = settings.devserver_image
    if await has_image(settings.docker_host, image):
        say("image", f"{image} is there")
        return
    name = image.removesuffix(":latest")
    if ":" in name.rpartition("/")[2]:
        say("image", f"{image} isn't on the engine and isn't one that this project makes. {_WITHOUT} you pull it")
        return
    say("image", f"{image} isn't there yet; making it takes a minute or two, once")
    await _build(name, settings.docker_host)


async def _build(name: str, engine: str) -> None:
    began = time.monotonic()
    process = await create_subprocess_exec(
        *die_with_parent([str(_ROOT / "docker" / "devserver" / "build")]),
        stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, start_new_session=True,
        env={**os.environ, "DEVSERVER_IMAGE": name, "DOCKER_HOST": engine},
    )  # fmt: skip
    try:
        async for line in _lines(process.stdout):
            say("image", line.removeprefix("dev-server image: "))
        code = await process.wait()
    finally:
        _kill_group(process)
    took = f"{time.monotonic() - began:.1f} s"
    say("image", f"ready after {took}" if code == 0 else f"couldn't be made. {_WITHOUT} `make image` has succeeded")


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
