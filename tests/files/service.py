"""The service's side of the projects' files: processes of their own, with the rights that API and worker have."""

import asyncio
import multiprocessing
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from activities.files.store import DiskFileStore
from tests.files import work  # noqa: F401 -- loaded while what Python stands on can still be read
from workers.secrecy import keep_to_itself
from workflows.contracts.errors import StudioError

CONTAINER_OWNER = (1000, 1000)

T = TypeVar("T")


class RefusedError(Exception):
    """What the store said instead of doing it, by its code; a domain error doesn't go through pickle."""


@dataclass(frozen=True)
class Service:
    """What is done here is done there: functions of `work`, what they are given and give back go through pickle."""

    root: Path
    pool: ProcessPoolExecutor

    async def do(self, what: Callable[..., Awaitable[T]], *arguments: object) -> T:
        """`what(store, *arguments)`. A domain error is raised as `RefusedError`, any other as it is."""
        return await asyncio.wrap_future(self.pool.submit(_do, self.root, what, arguments))


class Services(ExitStack):
    """A process for each user that a service runs as."""

    def __init__(self) -> None:
        super().__init__()
        self._pools: dict[int | None, ProcessPoolExecutor] = {}

    def over(self, root: Path, uid: int | None) -> Service:
        """A service over the projects below `root`, as a user without any privilege, or as who this is."""
        if uid not in self._pools:
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=_become, initargs=(uid,))
            self._pools[uid] = self.enter_context(pool)
        return Service(root, self._pools[uid])


def _become(uid: int | None) -> None:
    if uid is not None and os.geteuid() == 0:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    keep_to_itself()


def _do(root: Path, what: Callable[..., Awaitable[T]], arguments: tuple[object, ...]) -> T:
    async def done() -> T:
        store = DiskFileStore(root, CONTAINER_OWNER if os.geteuid() == 0 else None)
        try:
            return await what(store, *arguments)
        except StudioError as error:
            raise RefusedError(error.code) from None

    return asyncio.run(done())
