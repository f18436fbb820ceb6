"""A cancelled task does nothing more, whatever it was doing, and keeps what its watchers have seen of it."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psutil
import pytest

from tests.chaos.tasks import Json, Task, begin, check_told, messages, new_chat, run, say, script
from tests.chaos.watchers import Body, SocketWatcher, TaskWatcher, check_same, following, is_final, whole_log
from tests.chaos.world import Person, Project, World, until

pytestmark = [pytest.mark.chaos, pytest.mark.docker, pytest.mark.slow]

GONE_S = 3.0
QUIET_S = 0.2
"""Seconds after the answer to a cancellation by which processes are gone, and after which no call begins."""


def stubborn() -> tuple[str, str]:
    """A command whose processes don't listen to SIGTERM and lead sessions of their own; the word that marks them."""
    mark = f"{random.randrange(10**6, 10**7)}.{random.randrange(10**6, 10**7)}"
    inner = f"trap '' TERM; sleep {mark} & sleep {mark}; sleep {mark}"
    return f'trap "" TERM; setsid sh -c "{inner}" & sleep {mark}; sleep {mark}', mark


def marked(mark: str) -> list[psutil.Process]:
    """The programs, in containers, too, that were begun with that word."""
    return [process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"] == ["sleep", mark]]


async def stubborn_task(project: Project) -> tuple[Task, str]:
    """A task whose command runs."""
    command, mark = stubborn()
    task = await begin(project, script({"text": "Wait.", "calls": [run(command)]}))

    async def runs() -> bool:
        return len(marked(mark)) == 3

    await until(runs, "the command's processes")
    return task, mark


async def check_gone(mark: str, within_s: float = GONE_S) -> None:
    async def gone() -> bool:
        return not marked(mark)

    await until(gone, f"the end of {marked(mark)}", within_s)


async def check_cancelled(task: Task, reason: str = "cancelled_by_user") -> Json:
    """It has ended so, once, and its log and its transcript agree."""
    ended = await task.until_ended()
    assert (ended["state"], ended["state_reason"]) == ("cancelled", reason)
    seen = task.of(await whole_log(task.project))
    check_told(seen, ended)
    assert sum(map(is_final, seen)) == 1
    return ended


async def nothing(_: World) -> int:
    return 0


async def no_temporal(world: World) -> int:
    return world.kill("temporal")


@pytest.mark.parametrize("before", [nothing, no_temporal])
async def test_a_cancelled_command_is_gone_with_all_that_it_started(
    world: World, ann: Person, before: Callable[[World], Awaitable[int]]
) -> None:
    """Also while Temporal can't tell anybody."""
    task, mark = await stubborn_task(await ann.start())
    said = await before(world)
    await task.cancel()
    await check_gone(mark)
    if said:
        await world.until_back("temporal", said)
    ended = await check_cancelled(task)
    [[call]] = [step["tool_calls"] for step in ended["steps"]]
    assert call["state"] == "cancelled"


async def test_a_task_cancelled_while_no_worker_is_there_is_ended_by_the_next(world: World, ann: Person) -> None:
    task, mark = await stubborn_task(await ann.start())
    said = world.kill("worker")
    await task.cancel()
    assert (await task.view())["state"] == "running"
    await world.until_back("worker", said)
    await check_cancelled(task)
    await check_gone(mark, 0.5)


async def test_a_task_is_cancelled_once_however_often_that_is_said(ann: Person) -> None:
    task, mark = await stubborn_task(await ann.start())
    await asyncio.gather(*(task.cancel() for _ in range(5)))
    await check_gone(mark)
    ended = await check_cancelled(task)
    await task.cancel()
    assert await task.view() == ended


async def test_no_call_begins_after_a_cancellation(ann: Person) -> None:
    project = await ann.start()
    short = {"calls": [run("true"), run("sleep 0.05")], "repeat_steps": 150}
    for _ in range(5):
        task = await begin(project, script(short, key=uuid4().hex), max_steps=200)
        await task.until_event("tool.call", step=random.randint(2, 4), state="running")
        await asyncio.sleep(random.uniform(0, 0.4))
        await task.cancel()
        answered = datetime.now(UTC)
        await check_cancelled(task)
        begun = [body["at"] for body in task.of(await whole_log(project)) if is_begun_call(body)]
        assert begun
        assert datetime.fromisoformat(begun[-1]) < answered + timedelta(seconds=QUIET_S)


def is_begun_call(body: Body) -> bool:
    return (body["type"], body["data"].get("state")) == ("tool.call", "running")


async def test_a_reply_cancelled_in_the_middle_keeps_what_its_watchers_have_seen(ann: Person) -> None:
    project = await ann.make()
    await asyncio.gather(*(cancelled_reply(project, wait_s) for wait_s in (0, 0.02, 0.3, 0.7, 1.1, 1.5)))


async def cancelled_reply(project: Project, wait_s: float) -> None:
    reply = await say(project, await new_chat(project), script({"tokens": 1000, "rate": 50}))
    own, chat = TaskWatcher(project.owner, reply.id), SocketWatcher(project.owner, reply.chat_id)
    async with following(own, chat):
        await reply.until_event("step.started")
        await asyncio.sleep(wait_s)
        await reply.cancel()
        ended = await check_cancelled(reply)
        await own.until_seen(10**9)
        await chat.until_seen(own.position)
    check_same(own.seen, chat.seen)
    text = "".join(step["text"] for step in ended["steps"])
    assert "".join(body["data"]["text"] for body in own.seen if body["type"] == "text.delta") == text
    assert [message["content"] for message in await messages(reply)] == ([text] if text else [])


async def test_an_interruption_hands_over_to_the_next_task(ann: Person) -> None:
    project = await ann.start()
    first, mark = await stubborn_task(project)
    queued = await begin(project, script({"text": "never"}), chat_id=first.chat_id, on_busy="enqueue")
    look = f"grep -la '{mark[:-1]}[{mark[-1]}]' /proc/[0-9]*/cmdline > left.txt"  # which doesn't find itself
    last = await begin(project, script({"calls": [run(look)]}), chat_id=first.chat_id, on_busy="interrupt")
    await check_gone(mark)
    for task in (first, queued):
        await check_cancelled(task, "superseded")
    assert (await last.until_ended())["state"] == "completed"
    # The first one's processes were gone before the next one began.
    assert (project.folder / "left.txt").read_text() == ""
    check_one_after_the_other(await whole_log(project), [first, last])


async def test_queued_tasks_run_in_their_order_also_when_the_worker_dies(world: World, ann: Person) -> None:
    project = await ann.start()
    chat, count = await new_chat(project), 6
    tasks = [
        await begin(
            project,
            script({"tokens": 10, "calls": [run(f"echo {number} >> order.txt")]}),
            chat_id=chat,
            on_busy="enqueue",
        )
        for number in range(count)
    ]
    await tasks[1].until_event("step.started")
    said = world.kill("worker")
    await tasks[4].cancel()
    await world.until_back("worker", said)
    states = [(await task.until_ended())["state"] for task in tasks]
    assert states == ["cancelled" if task is tasks[4] else "completed" for task in tasks]
    assert (project.folder / "order.txt").read_text().split() == ["0", "1", "2", "3", "5"]
    log = await whole_log(project)
    check_one_after_the_other(log, [task for task in tasks if task is not tasks[4]])
    for task in tasks:
        check_told(task.of(log), await task.view())


def check_one_after_the_other(log: list[Body], tasks: list[Task]) -> None:
    """No task begins before the one before it has ended."""
    ended = 0
    for task in tasks:
        own = task.of(log)
        [began] = [body["seq"] for body in own if body["type"] == "step.started" and body["data"]["step"] == 1]
        assert began > ended
        ended = own[-1]["seq"]
