"""Blocking calls in a bounded number of threads, and never left running behind their caller's back."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class BlockingPool:
    """At most `size` blocking calls at once; the others wait for their turn."""

    def __init__(self, name: str, size: int = 16) -> None:
        self._threads = ThreadPoolExecutor(max_workers=size, thread_name_prefix=name)

    async def run(self, call: Callable[[], T]) -> T:
        """The call's result. A cancelled caller goes on only after the call has ended.

        So a lock that it holds is never given back, nor a descriptor closed, under a thread that still works.
        """
        future = asyncio.get_running_loop().run_in_executor(self._threads, call)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await _ended(future)
            raise


async def _ended(future: "asyncio.Future[T]") -> None:
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue  # cancelled again: the thread can't be interrupted, the first cancel is raised afterwards
    future.exception()  # seen: the caller is told of its cancellation instead
