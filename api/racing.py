"""The sides of an open connection, which end together."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def until_first(*sides: Coroutine[Any, Any, None]) -> None:
    """Run all of `sides` until one ends; the others are cancelled and have ended when this returns or raises.

    Raises what the one that ended has raised, the first of them in the order given when several did at once.
    """
    tasks = [asyncio.create_task(side) for side in sides]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()  # looked at: the first one's is raised below
    for task in tasks:
        if task in done:
            task.result()
