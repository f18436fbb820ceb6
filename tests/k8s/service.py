"""The service itself as pods of the cluster, brought up by the commands of k8s/README.md, and somebody who uses it."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.cluster import kubectl
from tests.e2e.studio import WAIT, until
from tests.kustomize import ROOT
from tests.namespaces import own_namespace

INGRESS = "http://127.0.0.1:8088"
HOST = "api.localhost"
FINAL = {"completed", "failed", "cancelled"}
SOON_S = 120.0
FOLDER = "studio-in-cluster"
"""In the path of all that the service of these tests keeps: what one that was killed has left is known by it."""

_README = ROOT / "k8s" / "README.md"
_NO_ROUTE = "404 page not found\n"
"""Traefik's own, while no pod of the API is ready."""


# --- the service --------------------------------------------------------------------------------------------------


def run(*words: str, timeout_s: float = 600.0, **environment: str) -> str:
    """What the command prints; it must succeed."""
    done = subprocess.run(
        words,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def commands(heading: str) -> list[str]:
    """The first block of commands under a heading of k8s/README.md, line by line."""
    section = _README.read_text().split(f"\n## {heading}\n")[1]
    return section.split("```sh\n")[1].split("```")[0].splitlines()


@contextmanager
def deployed(folder: Path) -> Iterator[dict[str, str]]:
    """The service, with projects in a namespace of their own and all its files in `folder`: the environment that the
    commands of `k8s/` need to find it. Nothing of it is left behind.
    """
    assert FOLDER in str(folder)
    _make_room()
    with own_namespace(folder / "data") as settings:
        own = {name: settings[name] for name in ("KUBERNETES_NAMESPACE", "PROJECTS_ROOT")}
        try:
            for command in commands("From nothing to a running service, on one machine"):
                said = run("bash", "-euo", "pipefail", "-c", command, timeout_s=1800, **own)
            assert json.loads(said)["status"] == "ready", "the last command was to ask whether it is"
            yield own
        finally:
            _remove()
    shutil.rmtree(folder)


def _make_room() -> None:
    """Take away what a test that was killed has left. Fails where the service is somebody's."""
    path = "jsonpath={.spec.hostPath.path}"
    files = kubectl("get", "persistentvolume", "studio-files", "--ignore-not-found", "-o", path)
    used = kubectl("-n", "studio", "get", "deployments", "-o", "name") or kubectl("get", "storageclass", "-o", "name")
    if files and FOLDER not in files and used:
        pytest.fail(
            f"The service of {files} is in this cluster, which has room for one. `k8s/local down` and"
            " `kubectl delete namespace studio` make room for these tests (k8s/README.md tells what that leaves).",
            pytrace=False,
        )
    _remove()


def _remove() -> None:
    run("k8s/local", "down")
    kubectl("delete", "namespace", "studio", "--ignore-not-found", timeout_s=300)
    kubectl("delete", "persistentvolume", "studio-files", "studio-postgres", "studio-temporal", "--ignore-not-found")


def pods_of(name: str) -> list[dict[str, Any]]:
    """The Deployment's or StatefulSet's pods that nobody has told to end."""
    chosen = ("-l", f"app.kubernetes.io/name={name}", "-o", "json")
    found: list[dict[str, Any]] = json.loads(kubectl("-n", "studio", "get", "pods", *chosen))["items"]
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


# --- its users ----------------------------------------------------------------------------------------------------


def client(**options: Any) -> httpx.Client:
    """Of the API, behind the Ingress."""
    return httpx.Client(base_url=INGRESS, headers={"Host": HOST}, timeout=75, **options)


class User:
    """Somebody who has registered."""

    def __init__(self) -> None:
        self.http = client()
        body = {"email": f"ada-{uuid4().hex[:8]}@example.com", "password": "correct horse battery"}
        answer = self.http.post("/api/auth/register", json=body)
        assert answer.status_code == 201, answer.text
        self.http.cookies.clear()
        self._renew(answer.json())

    def call(self, method: str, path: str, **request: Any) -> Any:
        """The answer's body. A pod that goes, or a database that is away, is tried again, as clients do."""
        answer = self._answer(method, path, **request)
        if answer.status_code == 401:  # access ends after a quarter of an hour
            self._renew(self._answer("POST", "/api/auth/refresh", json={"refresh_token": self._refresh}).json())
            answer = self._answer(method, path, **request)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if "json" in answer.headers.get("content-type", "") else answer.text

    def _answer(self, method: str, path: str, **request: Any) -> httpx.Response:
        request["headers"] = {"Idempotency-Key": uuid4().hex, **request.get("headers", {})}

        def once() -> httpx.Response | None:
            try:
                answer = self.http.request(method, path, **request)
            except httpx.TransportError:
                return None
            away = answer.status_code in {502, 503, 504} or answer.text == _NO_ROUTE
            return None if away else answer

        return until(once, f"{method} {path}", SOON_S)

    def _renew(self, tokens: dict[str, Any]) -> None:
        self._refresh = tokens["refresh_token"]
        self.http.headers["Authorization"] = f"Bearer {tokens['access_token']}"

    def project(self) -> int:
        return int(self.make_project("static")["id"])

    def make_project(self, template: str) -> dict[str, Any]:
        made = dict(self.call("POST", "/api/projects", json={"name": "hello", "template": template}, headers=WAIT))
        assert made["state"] == "ready", made
        return made

    def running_project(self) -> int:
        project = self.project()
        started = self.call("POST", f"/api/projects/{project}/start", headers=WAIT)
        assert started["dev_server"]["state"] == "running", started
        return project

    def give(self, project: int, prompt: str, *steps: dict[str, Any], key: str) -> str:
        """A task in which the scripted model answers with `steps`."""
        script = json.dumps({"steps": steps, "key": key})
        body = {"project_id": project, "prompt": f"{prompt} <script>{script}</script>", "model": "scripted"}
        return str(self.call("POST", "/api/agent/tasks", json=body)["id"])

    def task(self, task: str) -> dict[str, Any]:
        return dict(self.call("GET", f"/api/agent/tasks/{task}"))

    def completed(self, task: str, timeout_s: float = 240.0) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            seen = self.task(task)
            return seen if seen["state"] in FINAL else None

        seen = until(ended, f"task {task}", timeout_s)
        assert seen["state"] == "completed", seen
        return seen

    def in_the_middle(self, task: str) -> None:
        """Return when its second command has begun."""
        until(lambda: len(self.task(task)["steps"]) >= 2, f"task {task} begins", SOON_S)
