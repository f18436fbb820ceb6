"""Tasks and the life of their project: one that is being made, and one that is deleted."""

from tests.e2e.studio import Person, Project, until
from tests.e2e.tasks import Task, call, give, script


def test_a_task_given_with_a_new_project_waits_for_its_files(ann: Person) -> None:
    answer = ann.http.post("/api/projects", json={"name": "at once", "template": "static"})
    project = Project(ann, answer.json()["id"])
    task = give(project, script(call("read_file", path="index.html"), {"text": "Seen."}))
    (seen, last) = task.completed()["steps"]
    assert "<html" in seen["tool_calls"][0]["result"]
    assert last["text"] == "Seen."
    project.call("DELETE", headers={"Prefer": "wait=60"})


def test_a_project_is_deleted_in_the_middle_of_a_task(ann: Person) -> None:
    project = ann.start("static", keep=True)
    task = give(project, script(call("run_command", command="echo on > working; sleep 300")))
    until((project.folder / "working").exists, "the command's first line", 60)
    assert project.call("DELETE", headers={"Prefer": "wait=60"}).status_code == 200
    assert not project.folder.exists()
    for path in (f"/api/projects/{project.id}", f"/api/agent/tasks/{task.id}"):
        assert ann.http.get(path).status_code == 404


def test_an_ended_task_is_tried_again_from_the_same_prompt(ann: Person) -> None:
    project = ann.start("static")
    first = give(project, script(call("run_command", command="sleep 300")))
    first.until("running")
    first.call("POST", "/cancel")
    first.until("cancelled")
    again = Task(project, first.call("POST", "/retry").json())
    assert again.id != first.id
    again.call("POST", "/cancel")
    shown = again.until("cancelled")
    assert (shown["prompt"], shown["chat_id"]) == (first.view()["prompt"], first.view()["chat_id"])
