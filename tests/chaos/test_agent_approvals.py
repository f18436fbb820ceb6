"""A task that waits for its user waits on, whatever dies meanwhile, and does what it is allowed to once."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.chaos.observers import Engine
from tests.chaos.tasks import Json, Task, begin, check_told, run, script
from tests.chaos.watchers import whole_log
from tests.chaos.world import Person, Project, World, world_of
from tests.workers.stacks import stack_environment

pytestmark = [pytest.mark.chaos, pytest.mark.docker, pytest.mark.slow]

ALL = ("worker", "api", "temporal", "postgres")
PAUSED = ("awaiting_approval", "completed", "failed")
LIMIT_S = 4


def asking(word: str) -> str:
    return script({"text": "May I?", "calls": [run(f"echo {word} >> {word}.txt")]}, {"text": "Fine."})


async def kill_all(world: World) -> None:
    """All at once."""
    said = {part: world.kill(part) for part in ALL}
    for part in ALL:
        await world.until_back(part, said[part])


async def ask(project: Project, prompt: str) -> Task:
    """A task that waits for its first answer."""
    task = await begin(project, prompt, approval_mode="ask")
    assert (await task.until_state(*PAUSED))["state"] == "awaiting_approval"
    return task


async def pending(task: Task) -> list[str]:
    return [approval["id"] for approval in (await task.view())["approvals"] if approval["state"] == "pending"]


def written(project: Project, word: str) -> list[str] | None:
    path = project.folder / f"{word}.txt"
    return path.read_text().split() if path.exists() else None


async def check_completed(task: Task) -> list[Json]:
    """It has ended well, with nothing asked or answered twice; its first step's calls."""
    ended = await task.until_ended()
    assert ended["state"] == "completed"
    seen = task.of(await whole_log(task.project))
    check_told(seen, ended)
    for kind in ("approval.requested", "approval.resolved"):
        asked = [body["data"]["approval_id"] for body in seen if body["type"] == kind]
        assert sorted(asked) == sorted(approval["id"] for approval in ended["approvals"])
    return list(ended["steps"][0]["tool_calls"])


async def test_answers_are_awaited_whatever_dies_meanwhile(world: World, ann: Person) -> None:
    project = await ann.start()
    twice = script({"calls": [run("echo always >> always.txt")], "repeat_steps": 2}, {"text": "Fine."})
    prompts = (asking("allowed"), asking("denied"), twice)
    allowed, denied, always = tasks = await asyncio.gather(*(ask(project, prompt) for prompt in prompts))
    questions = [await pending(task) for task in tasks]
    await kill_all(world)

    assert [await pending(task) for task in tasks] == questions
    for task, [question], decision in zip(tasks, questions, ("allow", "deny", "allow_always"), strict=True):
        await task.decide(question, decision, note="As I said.")
    [call] = await check_completed(allowed)
    assert (call["state"], written(project, "allowed")) == ("completed", ["allowed"])
    [call] = await check_completed(denied)
    assert (call["state"], written(project, "denied")) == ("denied", None)
    assert "As I said." in call["result"]
    await check_completed(always)
    assert written(project, "always") == ["always", "always"]


async def test_an_answer_given_while_no_worker_is_there_counts(world: World, ann: Person) -> None:
    project = await ann.start()
    task = await ask(project, asking("allowed"))
    [question] = await pending(task)
    said = world.kill("worker")
    await task.decide(question, "allow")
    answer = await task.call("POST", f"/approvals/{question}", json={"decision": "deny"})
    assert (answer.status_code, answer.json()["code"], answer.json()["decision"]) == (409, "already_resolved", "allow")
    await world.until_back("worker", said)
    await check_completed(task)
    assert written(project, "allowed") == ["allowed"]


@pytest.fixture(scope="module")
def impatient_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A stack whose tasks wait for seconds only."""
    environment = stack_environment(tmp_path_factory.mktemp("chaos") / "data") | {"APPROVAL_TIMEOUT_S": str(LIMIT_S)}
    with world_of(environment, lambda world: Engine(world.instance)) as made:
        yield made


async def test_what_nobody_answers_is_denied_also_when_its_time_ends_without_a_worker(impatient_world: World) -> None:
    async with impatient_world.person() as ben:
        project = await ben.start()
        task = await ask(project, asking("late"))
        [question] = await pending(task)
        said = impatient_world.kill("worker")
        await asyncio.sleep(LIMIT_S)
        answer = await task.call("POST", f"/approvals/{question}", json={"decision": "allow"})
        assert (answer.status_code, answer.json()["code"]) == (409, "already_resolved")
        await impatient_world.until_back("worker", said)
        [call] = await check_completed(task)
        assert (call["state"], written(project, "late")) == ("denied", None)
        await ben.leave()
