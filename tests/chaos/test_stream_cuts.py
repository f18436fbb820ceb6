"""Streams that are cut a thousand times, and two hundred of them at once: every client has all of it, once."""

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from uuid import uuid4

import pytest

from tests.chaos.killing import SEED
from tests.chaos.tasks import Task, check_told, messages, model_calls, new_chat, say, script, texts
from tests.chaos.watchers import SocketWatcher, SseWatcher, TaskWatcher, Watcher, check_same, following, whole_log
from tests.chaos.world import Person, Project, World, until

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

CUTS = 1000
TOKENS_A_SECOND = 50
ALL_ASKED_S = 20
"""Seconds within which two hundred messages are sent."""


@pytest.mark.docker
async def test_a_thousand_cuts_lose_and_double_nothing(world: World, ann: Person) -> None:
    chance, known = random.Random(SEED), incidents(world)

    def a_moment() -> float:
        return chance.uniform(0.02, 1.0)

    project = await ann.make()
    endless = script({"tokens": 200_000, "rate": TOKENS_A_SECOND})
    replies = [await say(project, await new_chat(project), endless) for _ in range(2)]
    whole = [SseWatcher(ann, f"/api/projects/{project.id}/events", a_moment) for _ in range(6)]
    own = [(task, TaskWatcher(ann, task.id, a_moment)) for task in replies for _ in range(4)]
    chats = [(task, SocketWatcher(ann, task.chat_id, a_moment)) for task in replies for _ in range(3)]
    watchers: list[Watcher] = [*whole, *(watcher for _, watcher in own), *(watcher for _, watcher in chats)]

    async def cut_enough() -> bool:
        return sum(watcher.cuts for watcher in watchers) >= CUTS

    async with following(*watchers):
        await until(cut_enough, f"{CUTS} cuts", 200)
        for task in replies:
            await task.cancel()
        ended = [await task.until_ended() for task in replies]
        last = {task.id: await last_of(task) for task in replies}
        await asyncio.gather(
            *(watcher.until_seen(max(last.values())) for watcher in whole),
            *(watcher.until_seen(last[task.id]) for task, watcher in [*own, *chats]),
        )

    log = await whole_log(project)
    for watcher in whole:
        check_same(watcher.seen, log[: watcher.position])
    for task, one in [*own, *chats]:
        check_same(one.seen, task.of(log))
    for task, view in zip(replies, ended, strict=True):
        check_told(task.of(log), view)
        assert len(view["steps"][0]["text"]) > 1000
    assert incidents(world) == known


def incidents(world: World) -> list[str]:
    """What the API could not account for so far."""
    lines = (world.stack.data / "logs" / "api.log").read_text().splitlines()
    return [line for line in lines if '"event": "incident"' in line]


async def last_of(task: Task) -> int:
    [row] = await task.project.world.fetch("SELECT max(seq) AS seq FROM events WHERE task_id = $1", task.id)
    return int(row["seq"])


@pytest.mark.docker
@pytest.mark.timeout(400)
async def test_two_hundred_streams_at_once_lose_nothing(world: World) -> None:
    people, streams, tokens, key = 4, 50, 500, uuid4().hex
    async with AsyncExitStack() as stack:
        owners = [await stack.enter_async_context(world.person()) for _ in range(people)]
        projects = [await owner.make() for owner in owners]
        chats = [[await new_chat(project) for _ in range(streams)] for project in projects]
        begin = time.monotonic() + ALL_ASKED_S
        asking = (replies(project, some, tokens, begin, key) for project, some in zip(projects, chats, strict=True))
        answered = await asyncio.gather(*asking)
        tasks = [task for some in answered for task in some]
        watchers = [TaskWatcher(task.owner, task.id) for task in tasks]
        async with following(*watchers):
            await asyncio.gather(*(watcher.until_seen(10**9, 300) for watcher in watchers))
        text = "".join(f"t{number} " for number in range(tokens))
        for project, some in zip(projects, answered, strict=True):
            await check_all_told(project, some, watchers, text)
        calls = (await model_calls(world, key))[0]
        # What came whole is never asked for again; an attempt that a busy machine took for dead was broken off.
        assert calls["finished"] == people * streams
        assert calls["begun"] == calls["finished"] + calls["cut"]
        for owner in owners:
            await owner.leave()


async def replies(project: Project, chats: Sequence[str], tokens: int, begin: float, key: str) -> list[Task]:
    """Chats of a project, all of which begin to be answered at that moment."""
    tasks = []
    for chat in chats:
        delay = max(0.0, begin - time.monotonic())
        prompt = script({"tokens": tokens, "rate": TOKENS_A_SECOND, "first_delay_s": delay}, key=key)
        tasks.append(await say(project, chat, prompt))
    return tasks


async def check_all_told(project: Project, tasks: Sequence[Task], watchers: Sequence[TaskWatcher], text: str) -> None:
    log = await whole_log(project)
    seen = {watcher.task_id: watcher.seen for watcher in watchers}
    for task in tasks:
        check_same(seen[task.id], task.of(log))
        assert texts(seen[task.id]) == {1: text}
        assert [message["content"] for message in await messages(task)] == [text]
