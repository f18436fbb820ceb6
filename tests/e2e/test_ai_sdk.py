"""`useChat` of the Vercel AI SDK against a whole stack: its own classes, by the packages of npm, in Node."""

import asyncio
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clients import npm
from tests.e2e.studio import Project

FOLDER = Path(__file__).parents[1] / "clients" / "ai"
LIST = {"name": "list_files", "arguments": {}}
RUN = {"name": "run_command", "arguments": {"command": "true"}}


def write(path: str) -> dict[str, Any]:
    """A call with an effect. The tool overwrites no file that it hasn't read, so each has a path of its own."""
    return {"name": "write_file", "arguments": {"path": path, "content": "hi"}}


@dataclass
class Talk:
    """A chat of a project, spoken to by the SDK."""

    project: Project
    id: str

    async def tell(self, story: str, *steps: dict[str, Any], **more: Any) -> Any:
        """Play a story of chat.mjs to its end. `steps`: what the model does. `answers`: to approvals, by tool."""
        told = {
            "story": story,
            "base": self.project.owner.studio.stack.api,
            "token": self.project.owner.token,
            "id": self.id,
            "answers": more.pop("answers", {}),
            "body": {"model": "scripted", "a_field_of_the_users_own": 1, **more},
            "text": f"Do it. <script>{json.dumps({'steps': steps})}</script>",
        }
        return await npm.run(FOLDER, "chat.mjs", told)

    def tasks(self) -> list[Any]:
        """The chat's tasks, oldest first, whole."""
        items = self.project.owner.http.get(f"/api/agent/tasks?project_id={self.project.id}&limit=200").json()["items"]
        ids = [task["id"] for task in items if task["chat_id"] == self.id]
        return [self.project.owner.http.get(f"/api/agent/tasks/{task}").json() for task in reversed(ids)]

    def transcript(self) -> str:
        """What the newest task has said."""
        return "".join(step["text"] for step in self.tasks()[-1]["steps"])


@pytest.fixture
def talk(site: Project) -> Talk:
    answer = site.owner.http.post("/api/chat", json={"project_id": site.id})
    assert answer.status_code == 201, answer.text
    return Talk(site, answer.json()["id"])


def state_of(told: Any) -> tuple[str, str | None]:
    """The task's, as the message has it."""
    [state] = [part["data"] for part in told["parts"] if part["type"] == "data-task"]
    return state["state"], state["reason"]


def calls_of(told: Any) -> list[tuple[str, str]]:
    return [(part["toolName"], part["state"]) for part in told["parts"] if part["type"] == "dynamic-tool"]


async def test_a_reply_arrives_in_pieces_and_a_resend_is_the_same(talk: Talk) -> None:
    told = await talk.tell("reply", {"tokens": 60, "rate": 100})
    [task] = talk.tasks()
    assert (told["status"], told["error"], told["messages"], told["id"]) == ("ready", None, 2, task["id"])
    assert told["text"] == talk.transcript() == "".join(f"t{n} " for n in range(60))
    assert len(told["seen"]) > 10
    assert told["again"]["parts"] == told["parts"]
    messages = talk.project.owner.http.get(f"/api/chat/{talk.id}/messages").json()["items"]
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert messages[1]["content"] == told["text"]


async def test_regenerate_tries_again(talk: Talk) -> None:
    told = await talk.tell("regenerate", {"tokens": 5})
    first, second = talk.tasks()
    assert (told["first"]["id"], told["second"]["id"]) == (first["id"], second["id"])
    assert (second["retry_of"], told["second"]["messages"]) == (first["id"], 2)
    assert told["second"]["text"] == talk.transcript()


async def test_a_client_that_left_resumes_as_does_one_that_has_just_come(talk: Talk) -> None:
    told = await talk.tell("resume", {"tokens": 150, "rate": 50})
    [task] = talk.tasks()
    assert (told["idle"]["status"], told["idle"]["messages"]) == ("ready", 0)
    assert 0 < len(told["left"]) < len(talk.transcript())
    for client, messages in (("fresh", 1), ("same", 2)):
        assert (told[client]["id"], told[client]["messages"]) == (task["id"], messages)
        assert told[client]["text"] == talk.transcript()
    assert told["fresh"]["parts"] == told["same"]["parts"]
    assert len(told["seen"]) > 5, "the rest came live"


async def test_stop_ends_the_task_and_a_busy_chat_says_so(talk: Talk) -> None:
    told = await talk.tell("stop", {"tokens": 5000})
    assert told["statuses"] == [202, 204]
    assert (told["status"], told["error"], state_of(told)) == ("ready", None, ("cancelled", "cancelled_by_user"))
    assert told["text"] == talk.transcript() != ""
    assert (told["busy"]["status"], json.loads(told["busy"]["error"])["code"]) == ("error", "chat_busy")
    assert len(talk.tasks()) == 1


async def test_an_agents_steps_and_calls_are_parts_and_a_model_call_that_breaks_off_leaves_none(talk: Talk) -> None:
    missing = {"name": "read_file", "arguments": {"path": "missing"}}
    steps: list[dict[str, Any]] = [
        {"text": "I look around. ", "calls": [LIST, missing]},
        {"text": "I write what I saw down. ", "fail": {"drop_after": 3}, "calls": [write("agent.txt")]},
        {"text": "Done."},
    ]
    told = await talk.tell("agent", *steps, mode="agent")
    kinds = [part["type"] for part in told["parts"]]
    step = ["step-start", "text"]
    assert kinds == ["data-task", *step, *["dynamic-tool"] * 2, *step, "dynamic-tool", *step]
    assert calls_of(told) == [
        ("list_files", "output-available"),
        ("read_file", "output-error"),
        ("write_file", "output-available"),
    ]
    assert told["parts"][7]["input"] == write("agent.txt")["arguments"]
    assert "agent.txt" in told["parts"][7]["output"]["result"]
    assert told["text"] == talk.transcript() == "".join(step["text"] for step in steps)
    assert told["states"] == ["queued", "running", "completed"]


async def test_approvals_are_answered_by_the_sdks_own_way(talk: Talk) -> None:
    told = await talk.tell(
        "approvals",
        {"text": "First. ", "calls": [LIST, write("asked.txt")]},
        {"text": "Then. ", "calls": [RUN]},
        {"text": "End."},
        mode="agent",
        approval_mode="ask",
        answers={"write_file": True, "run_command": False},
    )
    assert [asked["tools"] for asked in told["asked"]] == [["write_file"], ["run_command"]]
    for asked in told["asked"]:
        assert state_of(asked["shown"]) == state_of(asked["loaded"]) == ("awaiting_approval", "approval")
        assert asked["loaded"]["text"] == asked["shown"]["text"]
        assert calls_of(asked["loaded"]) == calls_of(asked["shown"])
    assert sorted(calls_of(told)) == [
        ("list_files", "output-available"),
        ("run_command", "output-denied"),
        ("write_file", "output-available"),
    ]
    assert (told["status"], told["messages"], state_of(told)) == ("ready", 2, ("completed", None))
    assert told["text"] == talk.transcript() == "First. Then. End."
    assert [approval["note"] for approval in talk.tasks()[0]["approvals"]] == [None, "Too risky."]


async def test_a_plan_is_answered_likewise(talk: Talk) -> None:
    told = await talk.tell(
        "approvals",
        {"text": "I plan. ", "calls": [{"name": "submit_plan", "arguments": {"plan": "Write a note."}}]},
        {"text": "I act. ", "calls": [write("planned.txt")]},
        {"text": "End."},
        mode="agent",
        approval_mode="plan",
        answers={"submit_plan": True},
    )
    assert [asked["tools"] for asked in told["asked"]] == [["submit_plan"]]
    assert calls_of(told) == [("submit_plan", "output-available"), ("write_file", "output-available")]
    assert told["text"] == talk.transcript() == "I plan. I act. End."


async def test_an_answer_given_elsewhere_is_followed_by_resuming(talk: Talk) -> None:
    steps: list[dict[str, Any]] = [{"text": "I ask. ", "calls": [write("elsewhere.txt")]}, {"text": "End."}]
    told = await talk.tell("answered_elsewhere", *steps, mode="agent", approval_mode="ask")
    assert (calls_of(told), state_of(told)) == ([("write_file", "output-available")], ("completed", None))
    assert told["text"] == talk.transcript() == "I ask. End."


async def test_a_failed_task_is_the_sdks_error(talk: Talk) -> None:
    told = await talk.tell("failure", {"text": "no", "fail": {"status": 400, "times": 99}})
    [task] = talk.tasks()
    assert (told["status"], task["state"], state_of(told)) == ("error", "failed", ("failed", task["state_reason"]))
    assert told["error"] == task["state_detail"]


async def test_a_server_that_stops_in_mid_stream_is_an_error_that_resuming_heals(talk: Talk) -> None:
    stack = talk.project.owner.studio.stack
    # Long enough for the API to come back before its end: what has ended is not streamed again.
    story = asyncio.create_task(talk.tell("outlast", {"tokens": 600, "rate": 20}))
    deadline = time.monotonic() + 60
    while not [task for task in talk.tasks() if task["state"] == "running"]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    os.kill(stack.pid("api"), signal.SIGTERM)
    told = await story
    await asyncio.to_thread(stack.wait_answering)
    [task] = talk.tasks()
    assert (told["broken"]["status"], told["whole"]["status"]) == ("error", "ready")
    assert told["whole"]["id"] == task["id"]
    assert told["whole"]["text"] == talk.transcript() == "".join(f"t{n} " for n in range(600))
