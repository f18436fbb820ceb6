"""A project between its first start and its last: commands, logs, terminals, variables, copies, and its end."""

import asyncio
import json
import re
import subprocess
import time
from contextlib import closing
from typing import Any

import asyncpg
from httpx_sse import connect_sse
from websockets.sync.client import ClientConnection, connect

import docker
from tests.cluster import kubectl
from tests.e2e.studio import WAIT, Person, Project, Studio, until
from tests.e2e.tail import Tail
from workers.stack.postgres import EmbeddedPostgres
from workflows.contracts.names import LABEL_PROJECT, LABEL_USER

SECRET = "a value that nobody reads again"
LISTED_S = {"docker": 0.0, "local": 0.0, "kubernetes": 60.0}
"""How long an ended container may be heard of: a cluster lists a pod until its node has tidied up after it."""


# --- commands ---------------------------------------------------------------------------------------------------


def test_a_command_runs_beside_the_server(service: Project) -> None:
    service.put("sub/one.txt", "1")
    done = service.run("cat one.txt; echo $WHO; id -u; echo bad >&2; exit 5", cwd="sub", env={"WHO": "me"})
    assert (done["exit_code"], done["stdout"], done["stderr"]) == (5, "1me\n1000\n", "bad\n")
    assert (done["truncated"], done["duration_ms"] > 0) == (False, True)


def test_a_commands_output_streams(service: Project) -> None:
    body = {"command": "echo one; sleep 0.5; echo two >&2; exit 4"}
    address = f"/api/projects/{service.id}/exec"
    with connect_sse(service.owner.http, "POST", address, json=body) as source:
        seen = [(frame.event, json.loads(frame.data), time.monotonic()) for frame in source.iter_sse()]
    assert [(event, data.get("text")) for event, data, _ in seen] == [
        ("stdout", "one\n"), ("stderr", "two\n"), ("exit", None),
    ]  # fmt: skip
    assert seen[1][2] - seen[0][2] > 0.3
    assert seen[2][1]["exit_code"] == 4


def test_a_commands_whole_tree_ends_with_its_time(service: Project) -> None:
    done = service.run("setsid sh -c 'trap \"\" TERM; sleep 4321' & sleep 4321", timeout_s=1)
    assert (done["exit_code"], done["duration_ms"] < 8000) == (124, True)
    assert service.run("pgrep -f 'sleep 432[1]'")["stdout"] == ""


# --- logs -------------------------------------------------------------------------------------------------------


def test_the_log_is_text_or_a_stream(service: Project) -> None:
    service.visit("/api/hello?name=before")
    log = service.call("GET", "/logs")
    assert log.headers["content-type"] == "text/plain; charset=utf-8"
    assert "/api/hello?name=before" in log.text
    assert len(service.call("GET", "/logs?tail=1").text.splitlines()) == 1
    address = f"/api/projects/{service.id}/logs?follow=true&tail=0"
    with connect_sse(service.owner.http, "GET", address, headers={"Accept": "text/event-stream"}) as source:
        service.visit("/api/hello?name=after")
        text = ""
        for frame in source.iter_sse():
            assert frame.event == "log"
            text += json.loads(frame.data)["text"]
            if "name=after" in text:
                break
    assert "name=before" not in text


# --- terminals --------------------------------------------------------------------------------------------------


def terminal(project: Project, query: str = "") -> ClientConnection:
    person = project.owner
    ticket = person.http.post("/api/auth/ticket", json={}).json()["ticket"]
    address = f"{person.studio.stack.api.replace('http', 'ws', 1)}/api/projects/{project.id}/terminal?ticket={ticket}"
    return connect(address + query, open_timeout=10, proxy=None)


def shown(socket: ClientConnection, pattern: str) -> str:
    """What the terminal shows until it matches."""
    screen = ""
    while not re.search(pattern, screen):
        frame = socket.recv(timeout=10)
        screen += frame.decode(errors="replace") if isinstance(frame, bytes) else ""
    return screen


def test_a_terminal_lives_through_a_lost_connection(service: Project) -> None:
    with terminal(service, "&cols=91&rows=23") as socket:
        session = json.loads(socket.recv(timeout=10))["session"]
        socket.send(b"stty size; mark=$((6 * 7))\r")
        shown(socket, r"\b23 91\b")
        socket.send(json.dumps({"type": "resize", "cols": 101, "rows": 33}))
        socket.send(b"stty size\r")
        shown(socket, r"\b33 101\b")
    with terminal(service, f"&session={session}") as socket:
        assert json.loads(socket.recv(timeout=10))["session"] == session
        shown(socket, r"\b23 91\b")
        socket.send(b"echo is-$mark\r")
        shown(socket, r"is-42")
        assert [lease["kind"] for lease in service.read()["dev_server"]["leases"]].count("terminal") == 1
        socket.send(b"exit\r")
        for _ in socket:
            pass
        assert socket.close_code == 1000


# --- variables --------------------------------------------------------------------------------------------------


def test_variables_are_there_from_the_next_start_and_never_read_again(ann: Person, studio: Studio) -> None:
    project = ann.start("static")
    assert project.call("PUT", "/env", json={"PORT": "1"}).status_code == 422
    stored = project.call("PUT", "/env", json={"SECRET_WORD": SECRET})
    assert stored.is_success, stored.text
    assert SECRET not in stored.text + project.call("GET", "/env").text
    assert "SECRET_WORD" in project.call("GET", "/env").text
    assert project.run("echo [$SECRET_WORD]")["stdout"] == "[]\n"
    assert project.command("restart")["state"] == "running"
    assert project.run("echo $SECRET_WORD")["stdout"] == f"{SECRET}\n"
    project.call("PUT", "/env", json={})
    project.stop()
    project.start()
    assert project.run("echo [$SECRET_WORD]")["stdout"] == "[]\n"
    assert [log.name for log in studio.stack.data.glob("logs/*.log") if SECRET in log.read_text(errors="replace")] == []


# --- conventions ------------------------------------------------------------------------------------------------


def test_work_is_accepted_at_once_or_waited_for(ann: Person) -> None:
    accepted = ann.http.post("/api/projects", json={"name": "later", "template": "static"})
    assert (accepted.status_code, accepted.json()["state"]) == (202, "provisioning")
    location = accepted.headers["location"]

    def ended() -> dict[str, Any] | None:
        operation = ann.http.get(location).json()
        return operation if operation["state"] != "running" else None

    operation = until(ended, "the provision's end")
    assert (operation["kind"], operation["state"], operation["error"]) == ("provision_project", "succeeded", None)
    project = Project(ann, accepted.json()["id"])
    assert operation["project_id"] == project.id
    began = time.monotonic()
    started = project.call("POST", "/start", headers={"Prefer": "wait=0"})
    assert (started.status_code, started.json()["dev_server"]["state"]) == (202, "starting")
    again = project.call("POST", "/start", headers=WAIT)
    assert (again.status_code, again.json()["dev_server"]["state"]) == (200, "running")
    assert time.monotonic() - began < 30
    assert project.call("POST", "/start", headers={"Prefer": "wait=61"}).status_code == 422


def test_a_repeated_creation_makes_one_project(ann: Person) -> None:
    body = {"name": "once", "template": "static"}
    headers = {"Idempotency-Key": f"e2e-{time.time_ns()}"}
    first = ann.http.post("/api/projects", json=body, headers=headers)
    second = ann.http.post("/api/projects", json=body, headers=headers)
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json() == second.json()
    assert first.headers["location"] == second.headers["location"]
    other = ann.http.post("/api/projects", json=body | {"name": "twice"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    names = [project["name"] for project in ann.http.get("/api/projects?limit=200").json()["items"]]
    assert (names.count("once"), names.count("twice")) == (1, 0)


# --- copies and the end -----------------------------------------------------------------------------------------


def test_a_fork_has_the_files_and_nothing_else(ann: Person) -> None:
    source = ann.start("static")
    page = source.call("GET", "/files/index.html").text
    source.put("index.html", page.replace("Your site is live", "Copied"))
    source.call("PUT", "/env", json={"SECRET_WORD": SECRET})
    answer = source.call("POST", "/fork", json={"name": "copy"}, headers=WAIT)
    assert (answer.status_code, answer.json()["state"], answer.json()["name"]) == (201, "ready", "copy")
    copy = Project(ann, answer.json()["id"])
    assert copy.id != source.id
    assert answer.json()["dev_server"]["state"] == "stopped"
    assert "SECRET_WORD" not in copy.call("GET", "/env").text
    copy.start()
    copy.put("index.html", page.replace("Your site is live", "Changed"))
    assert "Changed" in copy.visit().text
    assert "Copied" in source.visit().text


def test_a_deletion_leaves_nothing(studio: Studio) -> None:
    owner = studio.person("cyd")  # with one project only, so that the user's network goes, too
    project = owner.start("static")
    project.call("PUT", "/env", json={"SECRET_WORD": SECRET})
    project.visit()
    token = project.preview_token()
    assert project.folder.is_dir()
    assert running(studio, project) == [project.name]
    with Tail(project) as tail:
        gone = project.call("DELETE", headers=WAIT)
        assert (gone.status_code, gone.json()["state"]) == (200, "deleting")
        assert [seen.data["state"] for seen in tail.seen if seen.name == "project.state"][-1] == "deleting"
    assert not project.folder.exists()
    until(lambda: running(studio, project) == [], "nothing left of it", timeout_s=LISTED_S[studio.mode])
    assert networks(studio, owner) == []
    assert rows(studio, project) == {}
    for method in ("GET", "DELETE"):
        assert project.call(method).status_code == 404
    assert project.knock(X_Preview_Token=token).status_code == 401
    operation = owner.http.get(gone.headers["location"]).json()
    assert (operation["kind"], operation["state"]) == ("delete_project", "succeeded")


def test_a_deletion_is_legal_while_it_starts(ann: Person, studio: Studio) -> None:
    made = ann.http.post("/api/projects", json={"name": "short", "template": "static"})
    project = Project(ann, made.json()["id"])
    assert project.call("POST", "/start").status_code == 202
    assert project.call("DELETE", headers=WAIT).status_code == 200
    assert project.call("GET").status_code == 404
    assert not project.folder.exists()
    until(lambda: running(studio, project) == [], "nothing left of it", timeout_s=LISTED_S[studio.mode])


def running(studio: Studio, project: Project) -> list[str]:
    """Names of the project's containers, in any state; in local mode of its server's processes, in a cluster of
    whatever is the project's there.
    """
    if studio.mode == "kubernetes":
        labels = f"{LABEL_USER}={project.owner.id},{LABEL_PROJECT}={project.id}"
        namespace = studio.stack.environment["KUBERNETES_NAMESPACE"]
        kinds = "deployments,pods,services,ingresses"
        return [project.name] if kubectl("-n", namespace, "get", kinds, "-l", labels, "-o", "name") else []
    if studio.mode == "docker":
        wanted = [f"{LABEL_USER}={project.owner.id}", f"{LABEL_PROJECT}={project.id}"]
        with closing(docker.from_env()) as engine:
            return [str(found.name) for found in engine.containers.list(all=True, filters={"label": wanted})]
    listed = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True, timeout=10)
    alive = f"{project.folder} " in listed.stdout
    assert (studio.stack.data / "run" / "dev-servers" / project.name).exists() == alive
    return [project.name] if alive else []


def networks(studio: Studio, owner: Person) -> list[str]:
    if studio.mode != "docker":
        return []
    with closing(docker.from_env()) as engine:
        return [str(found.name) for found in engine.networks.list(filters={"label": f"{LABEL_USER}={owner.id}"})]


def rows(studio: Studio, project: Project) -> dict[str, int]:
    """Tables that still name the project, and how often. What was done to it is remembered as operations for a day."""
    return asyncio.run(_rows(EmbeddedPostgres(studio.stack.data / "postgres").url(), project.id))


async def _rows(url: str, project_id: int) -> dict[str, int]:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        columns = await connection.fetch(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public' "
            "AND (column_name = 'project_id' OR (table_name, column_name) = ('projects', 'id'))"
        )
        assert len(columns) > 5
        found = {
            table: await connection.fetchval(f'SELECT count(*) FROM "{table}" WHERE "{column}" = $1', project_id)
            for table, column in columns
            if table != "operations"
        }
    finally:
        await connection.close()
    return {table: count for table, count in found.items() if count}
