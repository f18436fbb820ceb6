"""Processes of a stack that die at moments of chance, which a seed repeats."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final
from uuid import uuid4

import psutil

from tests.chaos.world import World, until

SEED: Final = int(os.environ.get("CHAOS_SEED", random.randrange(2**32)))


class Workers:
    """The stack's worker, and one beside it that is there again at once: the stack takes its time after each death."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._held = AsyncExitStack()
        self._ready = world.stack.data / f"{uuid4().hex}.ready"

    async def kill(self) -> None:
        """Both at once; the one beside begins anew."""
        if lives("worker", self._world):
            self._world.kill("worker")
        await self.close()
        await self.start()

    async def start(self) -> None:
        self._ready.unlink(missing_ok=True)
        await self._held.enter_async_context(self._world.process("workers.worker", READY_FILE=str(self._ready)))

    async def close(self) -> None:
        await self._held.aclose()

    async def until_up(self) -> None:
        async def works() -> bool:
            return self._ready.exists()

        await until(works, "a worker", 60)


@asynccontextmanager
async def two_workers(world: World) -> AsyncIterator[Workers]:
    workers = Workers(world)
    try:
        await workers.start()
        await workers.until_up()
        yield workers
    finally:
        await workers.close()


class Killer:
    """Kills as the task under test advances: `step` says how far it is of so many `steps`."""

    def __init__(self, world: World, step: Callable[[], int], steps: int) -> None:
        self.kills = 0
        self._world = world
        self._step = step
        self._steps = steps

    async def workers(self, workers: Workers, deaths: int) -> None:
        await self._kill("workers", deaths, workers.kill, workers.until_up)

    async def part(self, part: str, deaths: int) -> None:
        """A part that the stack starts again."""
        said = 0

        async def kill() -> None:
            nonlocal said
            while not lives(part, self._world):  # noqa: ASYNC110 -- a process that no event reaches
                await asyncio.sleep(0.05)
            said = self._world.kill(part, signal.SIGKILL)

        async def back() -> None:
            if said:
                await asyncio.to_thread(
                    self._world.stack.wait_line, part, "ready again after", timeout_s=60, since=said
                )

        await self._kill(part, deaths, kill, back)

    async def _kill(
        self, name: str, deaths: int, kill: Callable[[], Awaitable[None]], back: Callable[[], Awaitable[None]]
    ) -> None:
        """So often, each time somewhere within some step; half of the time not before the last death is overcome."""
        chance = random.Random(f"{SEED} {name}")
        for moment in sorted(chance.choices(range(1, self._steps - 2), k=deaths)):
            while self._step() < moment:  # noqa: ASYNC110 -- it is told by a stream that comes and goes
                await asyncio.sleep(0.02)
            if chance.random() < 0.5:
                await back()
            await asyncio.sleep(chance.uniform(0, 0.8))
            await kill()
            self.kills += 1


def lives(part: str, world: World) -> bool:
    """Whether the process of its file does: a dead one's file is there until its successor's start, or gone, too."""
    try:
        return psutil.Process(world.stack.pid(part)).status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False
