"""What every activity that can take long is wrapped in: heartbeats out, errors classed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

from temporalio import activity

from activities.errors import converting_errors

_BEATS = 3
"""Heartbeats in a timeout: two may be late. The SDK throttles what is more (workflows/policies.py)."""


def attempt_scheduled() -> datetime:
    """When this attempt of the activity was scheduled, by Temporal's clock: the later one is the one that counts."""
    return activity.info().current_attempt_scheduled_time


@asynccontextmanager
async def working() -> AsyncIterator[None]:
    """Heartbeat until the block is left, so that a dead worker is noticed and a cancellation arrives; and let the
    errors of ports and domain leave it as Temporal understands them.
    """
    beating = asyncio.create_task(_beat())
    try:
        with converting_errors():
            yield
    finally:
        beating.cancel()


async def _beat() -> None:
    timeout = activity.info().heartbeat_timeout
    while timeout is not None:
        # First a pause: most activities end before they have anything to say.
        await asyncio.sleep(timeout.total_seconds() / _BEATS)
        activity.heartbeat()
