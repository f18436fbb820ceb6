"""A worker that was taken for dead thaws in the middle of what another has taken over: nobody hears of it."""

import asyncio
import os
import signal
from uuid import uuid4

import pytest

from tests.chaos.tasks import Task, begin, check_told, messages, model_calls, new_chat, run, say, script
from tests.chaos.watchers import SocketWatcher, TaskWatcher, check_same, following, whole_log
from tests.chaos.world import Person, World

pytestmark = [pytest.mark.chaos, pytest.mark.docker, pytest.mark.slow]

BEFORE, AFTER = "before.txt", "after.txt"


async def until_taken_over(task: Task) -> None:
    """The second attempt is in the middle of its text."""
    await task.until_event("step.reset", timeout_s=100)
    resets = "SELECT seq FROM events WHERE task_id = $1 AND type = 'step.reset'"
    [reset] = await task.project.world.fetch(resets, task.id)
    query = "SELECT FROM events WHERE task_id = $1 AND type = 'text.delta' AND seq > $2 LIMIT 1"
    async with asyncio.timeout(30):
        while not await task.project.world.fetch(query, task.id, reset["seq"]):  # noqa: ASYNC110 -- another process's
            await asyncio.sleep(0.05)


async def test_a_frozen_worker_thaws_while_another_goes_on_with_its_tasks(world: World, ann: Person) -> None:
    """It is in the middle of a text, and of a command with output."""
    project, key = await ann.start(), uuid4().hex
    command = f"echo 1 >> {BEFORE}; for i in $(seq 100); do echo $i; sleep 0.2; done; echo 1 >> {AFTER}"
    working = await begin(project, script({"text": "Counting.", "calls": [run(command)]}))
    reply = await say(project, await new_chat(project), script({"tokens": 600, "rate": 50}, key=key))
    own, chat = TaskWatcher(ann, reply.id), SocketWatcher(ann, reply.chat_id)
    async with following(own, chat):
        await working.until_event("tool.output")
        await reply.until_event("text.delta")
        frozen = world.stack.pid("worker")
        os.kill(frozen, signal.SIGSTOP)
        try:
            async with world.worker():
                await until_taken_over(reply)
                os.kill(frozen, signal.SIGCONT)
                said = await reply.until_ended(100)
                worked = await working.until_ended(100)
        finally:
            os.kill(frozen, signal.SIGCONT)
        await own.until_seen(10**9)
        await chat.until_seen(own.position)

    assert (said["state"], worked["state"]) == ("completed", "completed")
    log = await whole_log(project)
    for task, view in ((reply, said), (working, worked)):
        check_told(task.of(log), view)
    check_same(own.seen, reply.of(log))
    check_same(chat.seen, reply.of(log))
    assert sum(body["type"] == "step.reset" for body in own.seen) == 1
    text = "".join(f"t{number} " for number in range(600))
    assert [step["text"] for step in said["steps"]] == [text]
    assert [message["content"] for message in await messages(reply)] == [text]
    assert (await model_calls(world, key))[0]["begun"] == 2
    for path in (BEFORE, AFTER):
        assert (project.folder / path).read_text() == "1\n"
    [call] = worked["steps"][0]["tool_calls"]
    assert call["result"].endswith("\n".join(map(str, range(90, 101))) + "\n")
