"""The service itself as pods of the cluster, by `k8s/local`: its users see nothing of pods that go and come."""

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.cluster import kubectl
from tests.e2e.studio import WAIT, until
from tests.kustomize import ROOT

pytestmark = [pytest.mark.kubernetes, pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]

INGRESS = "http://127.0.0.1:8088"
FINAL = {"completed", "failed", "cancelled"}
NO_ROUTE = "404 page not found\n"
"""Traefik's own, while no pod of the API is ready."""
COMMANDS, LONG = 8, 60
IMAGES = ("api", "worker", "postgres", "temporal-admin-tools")

SOON_S = 120.0


def run(*words: str, timeout_s: float = 600.0, **environment: str) -> None:
    done = subprocess.run(
        words,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-4000:]}"


class User:
    """Somebody who has registered, at the API behind the Ingress."""

    def __init__(self) -> None:
        self._projects: list[int] = []
        self.http = httpx.Client(base_url=INGRESS, headers={"Host": "api.localhost"}, timeout=75)
        body = {"email": f"ada-{uuid4().hex[:8]}@example.com", "password": "correct horse battery"}
        answer = self.http.post("/api/auth/register", json=body)
        assert answer.status_code == 201, answer.text
        self.http.cookies.clear()
        self.http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def call(self, method: str, path: str, **request: Any) -> Any:
        """The answer's body. A pod that goes, or a database that is away, is tried again, as clients do."""
        request["headers"] = {"Idempotency-Key": uuid4().hex, **request.get("headers", {})}

        def once() -> httpx.Response | None:
            try:
                answer = self.http.request(method, path, **request)
            except httpx.TransportError:
                return None
            away = answer.status_code in {502, 503, 504} or answer.text == NO_ROUTE
            return None if away else answer

        answer = until(once, f"{method} {path}", SOON_S)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if "json" in answer.headers.get("content-type", "") else answer.text

    def project(self) -> int:
        return int(self.make_project("static")["id"])

    def make_project(self, template: str) -> dict[str, Any]:
        made = dict(self.call("POST", "/api/projects", json={"name": "hello", "template": template}, headers=WAIT))
        self._projects.append(int(made["id"]))
        assert made["state"] == "ready", made
        return made

    def leave(self) -> None:
        """Nothing of theirs is left in the cluster."""
        for project in self._projects:
            self.call("DELETE", f"/api/projects/{project}", headers=WAIT)
        self.http.close()

    def give(self, project: int, key: str, commands: int = COMMANDS) -> str:
        """A task of so many commands that take three seconds each and note themselves."""
        command = f"echo {key}-{{{{n}}}} >> log.txt; sleep 3; echo did {{{{n}}}}"
        step = {"tokens": 10, "rate": 50, "calls": [{"name": "run_command", "arguments": {"command": command}}]}
        steps = [{**step, "repeat_steps": commands}, {"text": "All done."}]
        prompt = f"Play this. <script>{json.dumps({'steps': steps, 'key': key})}</script>"
        body = {"project_id": project, "prompt": prompt, "model": "scripted"}
        return str(self.call("POST", "/api/agent/tasks", json=body)["id"])

    def completed(self, task: str, timeout_s: float = 240.0) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            seen = self.call("GET", f"/api/agent/tasks/{task}")
            return dict(seen) if seen["state"] in FINAL else None

        seen = until(ended, f"task {task}", timeout_s)
        assert seen["state"] == "completed", seen
        return seen

    def in_the_middle(self, task: str) -> None:
        """Return when its second command has begun."""
        until(lambda: len(self.call("GET", f"/api/agent/tasks/{task}")["steps"]) >= 2, f"task {task} begins", SOON_S)

    def log(self, project: int) -> list[str]:
        return str(self.call("GET", f"/api/projects/{project}/files/log.txt")).split()


def once_each(key: str, commands: int = COMMANDS) -> list[str]:
    return [f"{key}-{n}" for n in range(commands)]


@pytest.fixture(scope="module")
def service() -> Iterator[None]:
    try:
        run("k8s/cluster", "check")
    except AssertionError:
        run("k8s/cluster", "up")
    run("tests/testbed/images/build", *IMAGES, timeout_s=1800)
    run("k8s/local", "up")
    yield
    run("k8s/local", "down")


@pytest.fixture(scope="module")
def user(service: None) -> Iterator[User]:
    somebody = User()
    yield somebody
    somebody.leave()


def test_from_registration_to_a_changed_page(user: User) -> None:
    made = user.make_project("vite-react")
    started = user.call("POST", f"/api/projects/{made['id']}/start", headers=WAIT)
    assert started["dev_server"]["state"] == "running", started
    pass_ = user.call("POST", f"/api/projects/{made['id']}/preview-token")
    host = httpx.URL(pass_["url"]).netloc.decode()
    with httpx.Client(base_url=INGRESS, headers={"Host": host}) as browser:
        shown = {"X-Preview-Token": pass_["token"]}

        def page(path: str) -> str | None:
            answer = browser.get(path, headers=shown)
            return answer.text if answer.status_code == 200 else None

        assert "Your app is live" in until(lambda: page("/src/App.jsx"), "the preview", SOON_S)
        assert browser.get("/src/App.jsx").status_code == 401
        task = user.call(
            "POST", "/api/agent/tasks", json={"project_id": made["id"], "prompt": "A better heading", "model": "demo"}
        )
        user.completed(task["id"])
        changed = page("/src/App.jsx")
    assert changed is not None
    assert "Hello from the scripted demo model" in changed


@pytest.mark.parametrize("pod", ["studio-worker", "studio-api", "postgres", "temporal", "model"])
def test_a_pod_deleted_in_the_middle_of_a_task_loses_nothing(user: User, pod: str) -> None:
    """All of its kind at once."""
    project = user.project()
    task = user.give(project, pod)
    user.in_the_middle(task)
    chosen = kubectl("-n", "studio", "get", "pods", "-l", f"app.kubernetes.io/name={pod}", "-o", "name").split()
    kubectl("-n", "studio", "delete", "--wait=false", *chosen)
    user.completed(task)
    assert user.log(project) == once_each(pod)


def test_an_update_with_twenty_running_tasks_fails_none(user: User) -> None:
    projects = [user.project() for _ in range(4)]
    for project in projects:
        started = user.call("POST", f"/api/projects/{project}/start", headers=WAIT)
        assert started["dev_server"]["state"] == "running", started
    tasks = {
        user.give(project, f"{project}-{n}", LONG): (project, f"{project}-{n}")
        for n in range(5)
        for project in projects
    }
    tag = f"update-{uuid4().hex[:8]}"
    for image in ("studio-api", "studio-worker"):
        run("docker", "tag", f"{image}:latest", f"{image}:{tag}")
    try:
        run("k8s/local", "release", tag, timeout_s=800)
        states = [user.call("GET", f"/api/agent/tasks/{task}")["state"] for task in tasks]
        assert states == ["running"] * 20, "the update was to come in their middle"
        for task in tasks:
            user.completed(task, timeout_s=600)
        notes = {project: user.log(project) for project in projects}
        for project, key in tasks.values():
            assert [note for note in notes[project] if note.startswith(f"{key}-")] == once_each(key, LONG)
        builds = {
            container["env"][0]["value"]
            for found in json.loads(
                kubectl("-n", "studio", "get", "pods", "-l", "app.kubernetes.io/name=studio-worker", "-o", "json")
            )["items"]
            for container in found["spec"]["containers"]
            if not found["metadata"].get("deletionTimestamp")
        }
        assert builds == {tag}
    finally:
        run("k8s/local", "up", timeout_s=800)
        for image in ("studio-api", "studio-worker"):
            run("docker", "image", "rm", f"{image}:{tag}")  # the name: pods that end still run its content
