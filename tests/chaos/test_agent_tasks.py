"""An agent works on while everything around it is killed: nothing is lost, nothing happens twice."""

import asyncio
import logging
from uuid import uuid4

import pytest
from temporalio.client import Client

from tests.chaos.killing import SEED, Killer, two_workers
from tests.chaos.tasks import Task, begin, check_worked_once, commands, messages, model_calls
from tests.chaos.watchers import SocketWatcher, SseWatcher, TaskWatcher, check_same, following, whole_log
from tests.chaos.world import Person, World

pytestmark = [pytest.mark.chaos, pytest.mark.docker, pytest.mark.slow]

HISTORY_LIMIT = 2 * 1024 * 1024
log = logging.getLogger(__name__)


@pytest.mark.timeout(600)
async def test_a_hundred_commands_run_once_each_whatever_is_killed(world: World, ann: Person) -> None:
    key, count = uuid4().hex, 100
    log.warning("CHAOS_SEED=%d", SEED)  # shown when it fails
    project = await ann.start()
    task = await begin(project, commands(count, key), max_steps=count + 10)
    all_of_it = SseWatcher(ann, f"/api/projects/{project.id}/events")
    own, chat = TaskWatcher(ann, task.id), SocketWatcher(ann, task.chat_id)
    killer = Killer(world, all_of_it.step, count)
    async with following(all_of_it, own, chat), two_workers(world) as workers, asyncio.TaskGroup() as group:
        group.create_task(killer.workers(workers, 20))
        for part, deaths in (("api", 5), ("postgres", 1), ("temporal", 1)):
            group.create_task(killer.part(part, deaths))
        ended = await task.until_ended(500)
        await own.until_seen(await project.last_seq())
        for watcher in (all_of_it, chat):
            await watcher.until_seen(own.position)
    assert killer.kills == 27

    told = (await whole_log(project))[: own.position]
    check_same(all_of_it.seen[: own.position], told)
    check_same(own.seen, task.of(told))
    check_same(chat.seen, task.of(told))
    check_worked_once(project, ended, own.seen, count)
    assert [message["content"] for message in await messages(task)] == ["All done."]
    calls = await model_calls(world, key)
    assert sorted(calls) == list(range(count + 1))
    assert sum(each["begun"] for each in calls.values()) <= count + 1 + killer.kills
    assert sum(each["finished"] for each in calls.values()) <= count + 1 + killer.kills
    await check_histories(world, task)


async def check_histories(world: World, task: Task) -> None:
    client = await Client.connect(world.environment["TEMPORAL_ADDRESS"])
    sizes = [
        (await client.get_workflow_handle(task.workflow_id, run_id=run.run_id).describe()).raw_description
        async for run in client.list_workflows(f"WorkflowId = '{task.workflow_id}'")
    ]
    assert sizes
    for size in sizes:
        assert size.workflow_execution_info.history_size_bytes < HISTORY_LIMIT
