"""The agent at work in a project, for its owner: the page that changes, its tools in the container, approvals."""

import json

import pytest
from playwright.sync_api import BrowserContext

from tests.e2e.studio import Person, Project, Studio, until
from tests.e2e.tasks import Json, Task, call, give, results, script, watch_the_demo_change_the_page

pytestmark = [pytest.mark.browser, pytest.mark.slow]

BROKEN = """
export default function App() {
  console.error('the counter is gone')
  return <h1>Seen by the agent</h1>
}
"""


def test_the_page_follows_the_agent(studio: Studio, ann: Person, tabs: BrowserContext) -> None:
    project = ann.start("vite-react")
    task = watch_the_demo_change_the_page(project, tabs, studio).view()
    assert [each["name"] for step in task["steps"] for each in step["tool_calls"]] == [
        "read_file", "edit_file", "run_command",
    ]  # fmt: skip
    assert "npm run build" in task["steps"][2]["tool_calls"][0]["arguments"]["command"]
    assert task["steps"][2]["tool_calls"][0]["exit_code"] == 0, task["steps"][2]
    assert "scripted" in task["steps"][-1]["text"]


# --- tools ------------------------------------------------------------------------------------------------------


def test_tools_work_in_the_project_and_nowhere_else(studio: Studio, ann: Person) -> None:
    project = ann.start("vite-react")
    hidden = studio.stack.data / "secret-key"
    assert hidden.exists()
    task = give(
        project,
        script(
            call("run_command", command=f"id -u; pwd; env; ls {studio.stack.data}; cat {hidden}"),
            call("fetch_url", url="http://169.254.169.254/latest/meta-data/"),
            call("fetch_url", url="http://127.0.0.1/"),
            call("fetch_url", url="http://localhost/"),
            call("dev_server", action="restart"),
            call("read_file", path="src/App.jsx"),
            call("write_file", path="src/App.jsx", content=BROKEN),
            call("view_page"),
        ),
    )
    began = project.read()["dev_server"]["since"]
    ended = task.completed(120)
    seen, metadata, loopback, name, restarted, _, written, page = results(ended)
    check_the_container(studio, seen)
    for refused in (metadata, loopback, name):
        assert "isn't on the public internet" in refused, refused
    assert "running" in restarted
    assert project.read()["dev_server"]["since"] > began
    assert "Replaced src/App.jsx" in written
    assert "Seen by the agent" in page.partition("Visible text:")[2]
    assert "the counter is gone" in page.partition("Console errors")[2]
    states = [each["state"] for step in ended["steps"] for each in step["tool_calls"]]
    assert states == ["completed", "failed", "failed", "failed", "completed", "completed", "completed", "completed"]


def check_the_container(studio: Studio, seen: str) -> None:
    """Another user than the service's, and neither its files nor its secrets."""
    lines = seen.splitlines()
    assert "1000" in lines, seen
    assert (studio.stack.data / "secret-key").read_text().strip() not in seen
    assert "secret-key" not in "".join(line for line in lines if "No such file" not in line)
    environment = [line.partition("=")[0] for line in lines if "=" in line]
    assert not {"SECRET_KEY", "DATABASE_URL", "OPENAI_API_KEY", "LITELLM_MASTER_KEY"} & set(environment)
    if studio.mode != "local":
        assert "/workspace/app" in lines, seen


def test_a_long_command_goes_on_in_the_background_and_its_owner_steers(site: Project) -> None:
    """What the owner says is seen at the next step, which begins once `go` is there."""
    ticking = "for n in 1 2 3; do echo tick $n; sleep 0.2; done; while [ ! -e go ]; do sleep 0.1; done; echo gone"
    waiting = call("run_command", command="while [ ! -e go ]; do sleep 0.1; done")
    task = give(site, script(call("run_command", command=ticking, background=True), waiting))
    until(lambda: len(task.view()["steps"]) == 2, "the second step")
    first = task.view()["steps"][0]["tool_calls"][0]
    assert (first["state"], first["exit_code"]) == ("completed", None)
    assert "Running in the background" in first["result"]
    read = call("read_output", call=first["id"], wait_s=20)
    task.call("POST", "/messages", json={"content": script(read, {"text": "Steered."})})
    site.put("go", "")
    ended = task.completed()
    assert [step["text"] for step in ended["steps"]][-1] == "Steered."
    output = results(ended)[-1]
    assert "tick 1\ntick 2\ntick 3\ngone\n" in output + "\n"
    assert ended["steps"][2]["tool_calls"][0]["exit_code"] == 0
    site.call("DELETE", "/files/go")


# --- approvals --------------------------------------------------------------------------------------------------


def asked(task: Task, number: int) -> Json:
    """The task's question of that number, from 0, once it waits for an answer."""

    def there() -> Json | None:
        shown = task.view()
        pending = [each for each in shown["approvals"][number:] if each["state"] == "pending"]
        if not pending or shown["state"] != "awaiting_approval":
            return None
        assert shown["state_reason"] == "approval"
        return dict(pending[0])

    return until(there, f"question {number}", timeout_s=60)


def lease_kinds(project: Project) -> set[str]:
    return {lease["kind"] for lease in project.read()["dev_server"]["leases"]}


def test_what_has_effects_waits_for_its_owner(ann: Person) -> None:
    project = ann.start("static")
    steps = (
        call("list_files"),
        call("write_file", path="one.txt", content="1"),
        call("write_file", path="two.txt", content="2"),
    )
    task = give(project, script(*steps, {"text": "Finished."}), approval_mode="ask")
    question = asked(task, 0)
    held = task.view()["steps"][1]["tool_calls"][0]
    assert (question["kind"], question["call_id"], held["state"]) == ("tool", held["id"], "awaiting_approval")
    assert "task" not in lease_kinds(project)
    project.stop()
    assert project.call("GET", "/files/one.txt").status_code == 404

    task.call("POST", f"/approvals/{question['id']}", json={"decision": "allow"})
    second = asked(task, 1)
    assert project.call("GET", "/files/one.txt").text == "1"
    until(lambda: project.read()["dev_server"]["state"] == "running", "the dev server, woken", timeout_s=60)
    task.call("POST", f"/approvals/{second['id']}", json={"decision": "deny", "note": "Not that one."})
    ended = task.completed()
    assert project.call("GET", "/files/two.txt").status_code == 404
    denied = ended["steps"][2]["tool_calls"][0]
    assert denied["state"] == "denied"
    assert "Not that one." in denied["result"]
    assert ended["steps"][-1]["text"] == "Finished."
    assert json.dumps(ended["approvals"]).count('"pending"') == 0
    assert "task" not in lease_kinds(project)
