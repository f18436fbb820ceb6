"""The service as pods of the cluster, by the commands of k8s/README.md: users see nothing of pods that go and come."""

import json
import re
import socket
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.cluster import kubectl
from tests.e2e.studio import WAIT, until
from tests.k8s.service import FOLDER, HOST, INGRESS, SOON_S, User, client, deployed, pods_of, run
from tests.k8s.watching import Follower, knocking

pytestmark = [pytest.mark.kubernetes, pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]

PORT = httpx.URL(INGRESS).port
COMMANDS, LONG = 5, 20
AT_ONCE = ("--grace-period=0", "--force")
NO_ANSWER = "000"
"""What curl says of it."""


def once_each(key: str, commands: int = COMMANDS) -> list[str]:
    return [f"{key}-{n}" for n in range(commands)]


def noting(command: str, times: int) -> dict[str, Any]:
    """Steps of one command each; `{{n}}` in it is the step's number."""
    call = {"name": "run_command", "arguments": {"command": command}}
    return {"tokens": 10, "rate": 50, "calls": [call], "repeat_steps": times}


def log_of(user: User, project: int) -> list[str]:
    return str(user.call("GET", f"/api/projects/{project}/files/log.txt")).split()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with deployed(tmp_path_factory.mktemp(FOLDER)) as settings:
        yield settings


@pytest.fixture(scope="module")
def user(service: dict[str, str]) -> Iterator[User]:
    """Their projects go with the namespace."""
    somebody = User()
    yield somebody
    somebody.http.close()


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

        # Nobody is there to answer but the API, in its place.
        assert user.call("POST", f"/api/projects/{made['id']}/stop", headers=WAIT)["dev_server"]["state"] == "stopped"
        until(lambda: browser.get("/", headers=shown).status_code == 503, "the word that it sleeps", SOON_S)
        assert "retry-after" in browser.get("/", headers=shown).headers
        assert browser.get("/").status_code == 401


# --- whose address counts -----------------------------------------------------------------------------------------


def guess(http: httpx.Client, n: int) -> int:
    """The status of a login that fails, of an account of its own, with somebody else's address in its headers."""
    forged = {"X-Forwarded-For": f"203.0.113.{n}", "X-Real-Ip": f"203.0.113.{n}"}
    form = {"username": f"{uuid4().hex}@example.com", "password": "wrong guess"}
    return http.post("/api/auth/login", data=form, headers=forged).status_code


def test_the_address_that_counts_is_the_clients_and_not_what_it_says(user: User) -> None:
    """Ten failed logins of one address are one too many: neither are others shut out, nor does a header help."""
    with (
        client(transport=httpx.HTTPTransport(local_address="127.0.0.7")) as guessing,
        client(transport=httpx.HTTPTransport(local_address="127.0.0.8")) as neighbour,
    ):
        assert [guess(guessing, n) for n in range(11)] == [401] * 10 + [429]
        assert guess(neighbour, 0) == 401

    # From a project, past the Ingress: NetworkPolicies keep it out, and where nobody holds them it isn't believed.
    address = pods_of("studio-api")[0]["status"]["podIP"]
    loop = f"""for n in $(seq 11); do
        curl --silent --max-time 3 --output /dev/null --write-out '%{{http_code}} ' \
            --header "X-Forwarded-For: 203.0.113.$n" \
            --data "username=$n-{uuid4().hex}@example.com&password=wrong+guess" http://{address}:8000/api/auth/login
    done; true"""
    project = user.running_project()
    told = user.call("POST", f"/api/projects/{project}/exec", json={"command": loop, "timeout_s": 60})
    assert told["stdout"].split() in (["401"] * 10 + ["429"], [NO_ANSWER] * 11), told


# --- pods that go -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pods", "how"),
    [
        (("studio-worker",), ()),
        (("studio-worker", "studio-api"), AT_ONCE),
        (("temporal",), ()),
        (("postgres", "studio-api", "model"), ()),
    ],
)
def test_pods_deleted_in_the_middle_of_a_task_lose_nothing(
    user: User, pods: tuple[str, ...], how: tuple[str, ...]
) -> None:
    """All of their kinds at once."""
    key = f"{pods[0]}{len(how)}"
    project = user.project()
    command = f"echo {key}-{{{{n}}}} >> log.txt; sleep 2; echo did {{{{n}}}}"
    task = user.give(project, "Play this.", noting(command, COMMANDS), {"text": "All done."}, key=key)
    user.in_the_middle(task)
    old = [f"pod/{found['metadata']['name']}" for pod in pods for found in pods_of(pod)]
    assert len(old) >= len(pods)
    kubectl("-n", "studio", "delete", "--wait=false", *how, *old)
    user.completed(task)
    assert log_of(user, project) == once_each(key)


def terminal(user: User, project: int, query: str = "") -> ClientConnection:
    ticket = user.call("POST", "/api/auth/ticket", json={})["ticket"]
    address = f"ws://{HOST}:{PORT}/api/projects/{project}/terminal?ticket={ticket}{query}"
    return connect(address, sock=socket.create_connection(("127.0.0.1", PORT)), open_timeout=30, proxy=None)


def shown(console: ClientConnection, pattern: str) -> None:
    """Return when the terminal shows it."""
    screen = ""
    while not re.search(pattern, screen):
        frame = console.recv(timeout=30)
        screen += frame.decode(errors="replace") if isinstance(frame, bytes) else ""


def farewell(console: ClientConnection) -> int | None:
    """The code that it is closed with; None when it is cut."""
    try:
        while True:
            console.recv(timeout=60)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None


def test_an_update_of_the_api_refuses_nobody_and_cuts_no_event(user: User) -> None:
    project = user.running_project()
    task = user.give(project, "Tell a long story.", {"tokens": 8000, "rate": 50}, key="story")
    followers = [Follower(user, task) for _ in range(4)]
    for follower in followers:
        follower.start()
    with knocking(user) as somebody, terminal(user, project) as console:
        session = json.loads(console.recv(timeout=30))["session"]
        console.send(b"mark=$((6 * 7)); echo set-$mark\r")
        shown(console, "set-42")
        old = [f"pod/{found['metadata']['name']}" for found in pods_of("studio-api")]
        kubectl("-n", "studio", "rollout", "restart", "deployment/studio-api")
        kubectl("-n", "studio", "wait", "--for=delete", *old, "--timeout=200s", timeout_s=210)
        assert farewell(console) == 1012, "the server is restarted"
        with terminal(user, project, f"&session={session}") as again:
            again.send(b"echo is-$mark\r")
            shown(again, "is-42")
    assert user.task(task)["state"] == "running", "the update was to come in its middle"
    user.call("POST", f"/api/agent/tasks/{task}/cancel")
    whole = Follower(user, task)
    whole.run()
    assert whole.cut == []
    for follower in followers:
        follower.join(timeout=60)
        assert follower.cut == []
        assert follower.connections >= 2, "every one of them was at a pod that has gone"
        assert follower.seen == whole.seen
    assert somebody.refused == []
    assert somebody.answered > 50


def test_an_update_with_twenty_running_tasks_fails_none(user: User, service: dict[str, str]) -> None:
    """The last one here: the service runs images then whose names go with this test."""
    projects = [user.running_project() for _ in range(4)]

    def give(project: int, key: str) -> str:
        command = f"echo {key}-{{{{n}}}} >> log.txt; test -e hurry || sleep 4; echo did {{{{n}}}}"
        return user.give(project, "Play this.", noting(command, LONG), {"text": "All done."}, key=key)

    tasks = {give(project, f"{project}-{n}"): (project, f"{project}-{n}") for n in range(5) for project in projects}
    tag = f"update-{uuid4().hex[:8]}"
    for image in ("studio-api", "studio-worker"):
        run("docker", "tag", f"{image}:latest", f"{image}:{tag}")
    try:
        run("k8s/local", "release", tag, timeout_s=800, **service)
        states = [user.task(task)["state"] for task in tasks]
        assert states == ["running"] * 20, "the update was to come in their middle"
        for project in projects:
            user.call("PUT", f"/api/projects/{project}/files/hurry", content=b"")
        for task in tasks:
            user.completed(task, timeout_s=600)
        notes = {project: log_of(user, project) for project in projects}
        for project, key in tasks.values():
            assert [note for note in notes[project] if note.startswith(f"{key}-")] == once_each(key, LONG)
        builds = {
            container["env"][0]["value"]
            for found in pods_of("studio-worker")
            for container in found["spec"]["containers"]
        }
        assert builds == {tag}
    finally:
        for image in ("studio-api", "studio-worker"):
            run("docker", "image", "rm", f"{image}:{tag}")  # the name: pods still run its content
