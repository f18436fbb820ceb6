"""Bounded waits for what another process does."""

import asyncio
import time
from collections.abc import Awaitable, Callable


async def until(condition: Callable[[], Awaitable[bool]], *, within_s: float = 15.0) -> None:
    """Return when the condition holds; fail when it doesn't in time."""
    deadline = time.monotonic() + within_s
    while not await condition():
        assert time.monotonic() < deadline, "it didn't come true in time"
        await asyncio.sleep(0.05)
