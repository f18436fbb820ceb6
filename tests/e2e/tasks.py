"""Tasks of the agent, as their owner gives them and follows them over HTTP; what scripts make the model say."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

import httpx
from playwright.sync_api import BrowserContext, expect
from temporalio.client import Client

from tests.e2e.browser import Tab, mark, shoot
from tests.e2e.studio import Project, Studio, until
from tests.e2e.tail import Seen, Tail

Json = dict[str, Any]
Result = TypeVar("Result")

FINAL = {"completed", "failed", "cancelled"}
HEADING = "Your app is live"
DEMO_HEADING = "Hello from the scripted demo model"


def script(*steps: Json, **said: Any) -> str:
    """A prompt that makes the model `scripted` say these steps; see workers/scripted_model/script.py."""
    return f"Play this. <script>{json.dumps({'steps': steps, **said})}</script>"


def call(tool: str, **arguments: Any) -> Json:
    """A step that calls one tool."""
    return {"calls": [{"name": tool, "arguments": arguments}], "pieces_per_s": 0}


class Task:
    """A task in a project."""

    def __init__(self, project: Project, shown: Json) -> None:
        self.project = project
        self.id = str(shown["id"])

    @property
    def workflow_id(self) -> str:
        return f"agent-task-{self.id}"

    def call(self, method: str, path: str = "", **request: Any) -> httpx.Response:
        answer = self.project.owner.http.request(method, f"/api/agent/tasks/{self.id}{path}", **request)
        assert answer.is_success, answer.text
        return answer

    def view(self) -> Json:
        return dict(self.call("GET").json())

    def until(self, *states: str, timeout_s: float = 60.0) -> Json:
        """The task once it is in one of these states; it has none of the final ones unless asked for."""

        def there() -> Json | None:
            task = self.view()
            assert task["state"] in states or task["state"] not in FINAL, task
            return task if task["state"] in states else None

        return until(there, f"task {self.id} {' or '.join(states)}", timeout_s)

    def completed(self, timeout_s: float = 60.0) -> Json:
        return self.until("completed", timeout_s=timeout_s)

    def events(self) -> list[Json]:
        """What its own stream tells, to its end."""
        told = self.call("GET", "/events", headers={"Accept": "text/event-stream"}).text
        return [json.loads(line.removeprefix("data: ")) for line in told.splitlines() if line.startswith("data: ")]


def give(project: Project, prompt: str, **fields: Any) -> Task:
    """Give the agent a task, for the scripted model unless another one is named."""
    answer = try_to_give(project, prompt, **fields)
    assert answer.status_code == 202, answer.text
    return Task(project, answer.json())


def try_to_give(project: Project, prompt: str, **fields: Any) -> httpx.Response:
    body = {"project_id": project.id, "prompt": prompt, "model": "scripted", **fields}
    return project.owner.http.post("/api/agent/tasks", json=body)


def results(task: Json) -> list[str]:
    """What each of the task's calls has answered, in order."""
    return [each["result"] for step in task["steps"] for each in step["tool_calls"]]


# --- a page that changes while its owner looks ------------------------------------------------------------------


def watch_the_demo_change_the_page(project: Project, tabs: BrowserContext, studio: Studio) -> Task:
    """The demo's task, ended: its owner has seen the new heading before that, on a page that never loaded again."""
    tab = Tab(tabs)
    tab.open(project.preview_link(), HEADING)
    loads = mark(tab.page, DEMO_HEADING)
    task = give(project, "Make the heading friendlier.", model="demo")
    with Tail(project) as tail:
        expect(tab.page.get_by_role("heading", level=1)).to_have_text(DEMO_HEADING, timeout=60_000)
        shoot(tab.page, studio.shots, "changed-by-the-agent")
        end = tail.wait(_is_end_of(task), "the task's end", timeout_s=120)
    assert end.data["state"] == "completed", end.body
    shown_at = tab.page.evaluate("window.shownAt") / 1000
    ended_at = datetime.fromisoformat(end.body["at"]).timestamp()
    assert shown_at < ended_at
    studio.tell("page changed by the agent → end of its task", ended_at - shown_at)
    expect(tab.page.get_by_role("button")).to_have_text("Clicked 2 times")
    assert (tab.page.evaluate("window.mark"), loads) == ("alive", [])
    return task


def _is_end_of(task: Task) -> Callable[[Seen], bool]:
    def is_end(seen: Seen) -> bool:
        return seen.name == "task.state" and seen.body["task_id"] == task.id and seen.data["state"] in FINAL

    return is_end


# --- what operators see -----------------------------------------------------------------------------------------


def histories(task: Task) -> list[tuple[int, str]]:
    """Of each run of its workflow: the history's size in bytes, and all of it as JSON."""

    async def read() -> list[tuple[int, str]]:
        client = await Client.connect(f"127.0.0.1:{task.project.owner.studio.stack.environment['TEMPORAL_PORT']}")
        found = []
        async for run in client.list_workflows(f"WorkflowId = '{task.workflow_id}'"):
            handle = client.get_workflow_handle(task.workflow_id, run_id=run.run_id)
            described = (await handle.describe()).raw_description.workflow_execution_info
            found.append((described.history_size_bytes, (await handle.fetch_history()).to_json()))
        return found

    def complete() -> list[tuple[int, str]]:
        return until(lambda: apart(read()), "the workflow's runs")

    return complete()


def apart(work: Coroutine[Any, Any, Result]) -> Result:
    """Run it where no browser's driver keeps an event loop running."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


@contextmanager
def together(count: int) -> Iterator[ThreadPoolExecutor]:
    """So many hands."""
    with ThreadPoolExecutor(count) as threads:
        yield threads
