"""Tasks of the model that plays scripts, and what must hold of one whatever has happened to it."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final
from uuid import uuid4

import httpx

from tests.chaos.watchers import FINAL, Body, is_final
from tests.chaos.world import Project, World, until

Json = dict[str, Any]

LOG: Final = "log.txt"


def script(*steps: Json, **said: Any) -> str:
    """A prompt that makes the model say `steps`; see workers/scripted_model/script.py."""
    return f"Play this. <script>{json.dumps({'steps': steps, **said})}</script>"


def run(command: str, **arguments: Any) -> Json:
    """A call of `run_command`."""
    return {"name": "run_command", "arguments": {"command": command, **arguments}}


def commands(count: int, key: str, each_s: float = 0.1) -> str:
    """A prompt for that many commands, each of which notes its number and then takes `each_s`, and a last word."""
    step = {"tokens": 10, "rate": 50, "calls": [run(f"echo {{{{n}}}} >> {LOG}; sleep {each_s:g}; echo did {{{{n}}}}")]}
    return script({**step, "repeat_steps": count}, {"text": "All done."}, key=key)


class Task:
    """A task of somebody's in a project."""

    def __init__(self, project: Project, shown: Json) -> None:
        self.project = project
        self.owner = project.owner
        self.id: str = shown["id"]
        self.chat_id: str = shown["chat_id"]

    @property
    def workflow_id(self) -> str:
        return f"agent-task-{self.id}"

    async def call(self, method: str, path: str = "", **request: Any) -> httpx.Response:
        return await self.owner.http.request(method, f"/api/agent/tasks/{self.id}{path}", **request)

    async def view(self) -> Json:
        answer = await self.call("GET")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def cancel(self) -> None:
        answer = await self.call("POST", "/cancel")
        assert answer.status_code == 202, answer.text

    async def decide(self, approval_id: str, decision: str, **said: str) -> None:
        answer = await self.call("POST", f"/approvals/{approval_id}", json={"decision": decision, **said})
        assert answer.status_code == 200, answer.text

    async def until_state(self, *states: str, timeout_s: float = 60.0) -> Json:
        """The task once it is in one of `states`; outages meanwhile are waited for."""

        async def there() -> Json | None:
            try:
                answer = await self.call("GET")
            except httpx.TransportError:
                return None
            assert answer.status_code in {200, 503}, answer.text
            return answer.json() if answer.is_success and answer.json()["state"] in states else None

        return await until(there, f"task {self.id} {' or '.join(states)}", timeout_s)

    async def until_ended(self, timeout_s: float = 60.0) -> Json:
        return await self.until_state(*FINAL, timeout_s=timeout_s)

    async def until_event(self, kind: str, timeout_s: float = 40.0, **data: Any) -> None:
        """The first event of that type with that data is told."""

        async def told() -> bool:
            query = "SELECT FROM events WHERE task_id = $1 AND type = $2 AND data @> $3"
            return bool(await self.project.world.fetch(query, self.id, kind, data))

        await until(told, f"{kind} {data} of task {self.id}", timeout_s)

    def of(self, log: Sequence[Body]) -> list[Body]:
        """What a stream of this task alone shows of the project's log."""
        return [body for body in log if body.get("task_id") == self.id]


async def begin(project: Project, prompt: str, **fields: Any) -> Task:
    """Give the agent a task."""
    body = {"project_id": project.id, "prompt": prompt, "model": "scripted", **fields}
    answer = await project.owner.http.post("/api/agent/tasks", json=body)
    assert answer.status_code == 202, answer.text
    return Task(project, answer.json())


async def new_chat(project: Project) -> str:
    answer = await project.owner.http.post("/api/chat", json={"project_id": project.id})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def say(project: Project, chat_id: str, prompt: str) -> Task:
    """Write to a chat, again while the server says that it is to be tried again; the task that replies."""
    body = {"content": prompt, "model": "scripted", "client_message_id": uuid4().hex}

    async def sent() -> Json | None:
        answer = await project.owner.http.post(f"/api/chat/{chat_id}/messages", json=body)
        assert answer.status_code in {202, 503}, answer.text
        return answer.json() if answer.is_success else None

    return Task(project, (await until(sent, f"a message to chat {chat_id}", 100))["task"])


async def messages(task: Task, role: str = "assistant") -> list[Json]:
    """The chat's messages of that role that came of the task."""
    answer = await task.owner.http.get(f"/api/chat/{task.chat_id}/messages", params={"limit": 200})
    assert answer.is_success, answer.text
    return [each for each in answer.json()["items"] if each["role"] == role and each["task_id"] == task.id]


async def model_calls(world: World, key: str) -> dict[int, dict[str, int]]:
    """How often each answer of the script with that key was begun and finished."""
    base = world.environment["OPENAI_API_BASE"].removesuffix("/v1")
    async with httpx.AsyncClient() as http:
        calls = (await http.get(f"{base}/calls")).json()["calls"]
    return {int(name.removeprefix(f"{key}/")): counts for name, counts in calls.items() if name.startswith(f"{key}/")}


def texts(seen: Sequence[Body]) -> dict[int, str]:
    """Each step's text as a client puts it together."""
    found: dict[int, str] = {}
    for body in seen:
        match body["type"]:
            case "step.started" | "step.reset":
                assert (body["type"] == "step.reset") == (body["data"]["step"] in found)
                found[body["data"]["step"]] = ""
            case "text.delta":
                found[body["data"]["step"]] += body["data"]["text"]
    return found


def check_told(seen: Sequence[Body], task: Json) -> None:
    """What was told of an ended task, and nothing else, is what its transcript says, each thing once."""
    steps = task["steps"]
    assert [step["n"] for step in steps] == list(range(1, len(steps) + 1))
    said = texts(seen)
    if task["state"] != "completed" and not said.get(len(steps) + 1, "said"):
        del said[len(steps) + 1]  # a model call that was broken off before its first word
    assert said == {step["n"]: step["text"] for step in steps}
    assert [is_final(body) for body in seen].index(True) == len(seen) - 1
    calls = [call for step in steps for call in step["tool_calls"]]
    told = [body["data"] for body in seen if body["type"] == "tool.result"]
    assert Counter(result["call"] for result in told) == Counter(call["id"] for call in calls)
    by_id = {result["call"]: result for result in told}
    for call in calls:
        result = by_id[call["id"]]
        assert (result["state"], result["result"], result["exit_code"]) == (
            call["state"], (call["result"] or "")[:4000], call["exit_code"],
        )  # fmt: skip
    check_output(seen)


def check_output(seen: Sequence[Body]) -> None:
    """Each call's output was told in pieces that join."""
    ends: Counter[str] = Counter()
    for body in seen:
        if body["type"] == "tool.output":
            call, piece = body["data"]["call"], body["data"]["text"].encode()
            assert body["data"]["end"] == ends[call] + len(piece)
            ends[call] = body["data"]["end"]


def check_worked_once(project: Project, task: Json, seen: list[Body], count: int) -> None:
    """Each command ran once, in its turn; what was told of the task is what is stored of it, usage included."""
    assert task["state"] == "completed", task["state_reason"]
    assert (project.folder / LOG).read_text().split() == [str(number) for number in range(count)]
    check_told(seen, task)
    assert len(texts(seen)) == count + 1
    for step in task["steps"][:count]:
        [call] = step["tool_calls"]
        assert (call["state"], call["exit_code"]) == ("completed", 0), call
        assert f"did {step['n'] - 1}\n" in call["result"] + "\n"
    for kind in ("input_tokens", "output_tokens"):
        assert task["usage"][kind] == sum(step["usage"][kind] for step in task["steps"])
    settled = [body["data"]["step"] for body in seen if body["type"] == "usage"]
    assert settled == list(range(1, count + 2))
