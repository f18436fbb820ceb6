"""A worker with an activity that doesn't end by itself: `python -m tests.workers.endless ADDRESS`."""

import asyncio
import sys
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from workers.leaving import giving_up

QUEUE = "endless"


@activity.defn
async def endless() -> None:
    sys.stdout.write("working\n")
    sys.stdout.flush()
    while True:
        activity.heartbeat()
        await asyncio.sleep(0.5)


@workflow.defn
class Endless:
    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(
            endless, start_to_close_timeout=timedelta(hours=1), heartbeat_timeout=timedelta(seconds=6)
        )


async def main(address: str) -> None:
    client = await Client.connect(address)
    await client.start_workflow(Endless.run, id=QUEUE, task_queue=QUEUE)
    async with Worker(
        client,
        task_queue=QUEUE,
        workflows=[Endless],
        activities=[endless],
        graceful_shutdown_timeout=timedelta(seconds=1),
        on_fatal_error=giving_up(5),
    ):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
