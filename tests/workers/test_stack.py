"""`make up` on its real parts. Slow: each stack is a whole one."""

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest

import docker
from tests.workers.stacks import PARTS, ROOT, RunningStack, stack_environment
from workers.stack.data_directory import DataDirectory
from workflows.contracts.names import LABEL_INSTANCE

pytestmark = [pytest.mark.docker, pytest.mark.slow]

PASSWORD = "correct horse battery"


@contextlib.contextmanager
def stack(environment: dict[str, str]) -> Iterator[RunningStack]:
    running = RunningStack(environment)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """One stack for the tests that leave it as it was: ready, nothing in it but what they made."""
    with stack(stack_environment(tmp_path_factory.mktemp("shared") / "data")) as running:
        running.wait_ready()
        yield running


def register(running: RunningStack, email: str) -> httpx.Client:
    """A client that is signed in as a new user."""
    client = httpx.Client(base_url=running.api, timeout=70)
    answer = client.post("/api/auth/register", json={"email": email, "password": PASSWORD})
    assert answer.status_code == 201, answer.text
    client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
    return client


def user_id(client: httpx.Client) -> int:
    return int(client.get("/api/users/me").json()["id"])


def test_says_where_everything_is(shared: RunningStack) -> None:
    ports = shared.environment
    assert "docker: DEPLOYMENT_MODE says so" in shared.output
    assert f"http://localhost:{ports['API_PORT']}/docs" in shared.output
    assert f"http://localhost:{ports['TEMPORAL_UI_PORT']}" in shared.output
    assert f"http://user<id>-project<id>.localhost:{ports['PREVIEW_PORT']}" in shared.output
    assert "models       scripted demo (no key needed)" in shared.output
    for part in PARTS:
        assert any(line.startswith(part) and "ready after" in line for line in shared.lines), part
    assert httpx.get(f"{shared.api}/docs", timeout=10).status_code == 200
    assert httpx.get(f"http://127.0.0.1:{ports['TEMPORAL_UI_PORT']}", follow_redirects=True, timeout=10).is_success


def test_pid_files_name_the_processes_themselves(shared: RunningStack) -> None:
    words = {"postgres": "pginstall/bin/postgres", "temporal": "temporal", "traefik": "traefik",
             "model": "workers.scripted_model", "worker": "workers.worker", "api": "workers.api"}  # fmt: skip
    for part in PARTS:
        command = " ".join(psutil.Process(shared.pid(part)).cmdline())
        assert words[part] in command
        assert "setpriv" not in command


def test_everything_listens_on_loopback_alone(shared: RunningStack) -> None:
    processes = {process.pid for process in shared.processes()}
    assert len(processes) >= len(PARTS)
    listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in processes]
    assert len(listening) >= len(PARTS)
    assert {connection.laddr.ip for connection in listening if connection.laddr} <= {"127.0.0.1", "::1"}


def test_secrets_are_their_owners_alone(shared: RunningStack) -> None:
    for name in ("secret-key", "postgres/password", "traefik/dynamic.yml", "traefik/static.yml"):
        assert stat.S_IMODE((shared.data / name).stat().st_mode) == 0o600, name
    assert stat.S_IMODE((shared.data / "logs").stat().st_mode) == 0o700


def test_second_up_on_the_same_folder_is_refused(shared: RunningStack) -> None:
    second = RunningStack(shared.environment)
    assert second.wait_end(30) == 1
    assert f"A stack runs in {shared.data} already" in second.output
    assert "Traceback" not in second.output
    shared.wait_answering()


def test_taken_ports_are_named_before_anything_starts(shared: RunningStack, tmp_path: Path) -> None:
    other = stack_environment(tmp_path / "data") | {"API_PORT": shared.environment["API_PORT"]}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(other["PREVIEW_PORT"])))
        taken.listen()
        running = RunningStack(other)
        assert running.wait_end(30) == 1
    assert f"Port {other['API_PORT']} is taken by process {shared.pid('api')}" in running.output
    assert f"Port {other['PREVIEW_PORT']} is taken by process {os.getpid()}" in running.output
    assert "set API_PORT to another port" in running.output
    assert "set PREVIEW_PORT to another port" in running.output
    assert not list((tmp_path / "data" / "run").glob("*.pid"))


def test_one_port_for_two_is_refused(tmp_path: Path) -> None:
    other = stack_environment(tmp_path / "data")
    running = RunningStack(other | {"PREVIEW_PORT": other["API_PORT"]})
    assert running.wait_end(30) == 1
    assert f"PREVIEW_PORT and API_PORT are both {other['API_PORT']}" in running.output


def test_cluster_that_does_not_answer_is_refused(tmp_path: Path) -> None:
    cluster = {"DEPLOYMENT_MODE": "kubernetes", "KUBECONFIG": str(tmp_path / "missing")}
    running = RunningStack(stack_environment(tmp_path / "data") | cluster)
    assert running.wait_end(60) == 1
    assert f"no cluster answers at KUBECONFIG={tmp_path / 'missing'}" in running.output
    assert "Traceback" not in running.output
    assert not list((tmp_path / "data" / "run").glob("*.pid"))


def test_weak_key_is_refused(tmp_path: Path) -> None:
    running = RunningStack(stack_environment(tmp_path / "data") | {"SECRET_KEY": "weak"})
    assert running.wait_end(30) == 1
    assert running.output.startswith("SECRET_KEY: it is shorter than 32 bytes")
    assert "Traceback" not in running.output


@pytest.mark.chaos
@pytest.mark.parametrize("part", PARTS)
def test_killed_part_comes_back(shared: RunningStack, part: str) -> None:
    shared.wait_answering()
    with closing(register(shared, f"{part}@example.com")) as client:
        before = user_id(client)
        old, since = shared.pid(part), len(shared.lines)
        os.kill(old, signal.SIGKILL)
        shared.wait_line(part, "was killed by SIGKILL; starting it again", since=since)
        shared.wait_line(part, "ready again after", since=since)
        shared.wait_answering()
        assert shared.pid(part) != old
        assert user_id(client) == before


def test_two_stacks_side_by_side(shared: RunningStack, tmp_path: Path) -> None:
    with stack(stack_environment(tmp_path / "data")) as second:
        second.wait_ready()
        with (
            closing(register(shared, "one@example.com")) as ours,
            closing(register(second, "one@example.com")) as theirs,
        ):
            # Names of containers and preview hosts follow from these: neither stack is on the default ports.
            assert min(user_id(ours), user_id(theirs)) >= 100_000
            assert abs(user_id(ours) - user_id(theirs)) > 100
        shared.wait_answering()


@pytest.mark.chaos
def test_ends_without_a_trace_and_comes_back_warm(tmp_path: Path) -> None:
    environment = stack_environment(tmp_path / "data")
    with stack(environment) as first:
        first.wait_ready()
        client = register(first, "ada@example.com")
        project = start_project(client)
        assert len(containers(first)) == 1
        began = time.monotonic()
        assert first.stop() == 0
        assert time.monotonic() - began < 30
        assert "stack      ended" in first.output
        assert "may still run" not in first.output
        assert first.processes() == []
        assert containers(first) == []
        assert not list((first.data / "run").glob("*.pid"))

    with closing(client), stack(environment) as second:
        assert second.wait_ready() < 15
        assert client.get(f"/api/projects/{project}/status").json()["state"] == "stopped"
        start(client, project)

        # A killed supervisor takes its parts along, but no dev server: the next one finds it running.
        second.signal(signal.SIGKILL)
        second.wait_end()
        with stack(environment) as third:
            assert third.wait_ready() < 30
            assert client.get(f"/api/projects/{project}/status").json()["state"] == "running"
            assert client.delete(f"/api/projects/{project}", headers={"Prefer": "wait=30"}).is_success
            assert containers(third) == []


def containers(running: RunningStack) -> list[str]:
    """Names of the stack's dev servers that run, as the engine tells."""
    engine = docker.from_env()
    try:
        label = f"{LABEL_INSTANCE}={DataDirectory(running.data).instance}"
        return [str(container.name) for container in engine.containers.list(filters={"label": label})]
    finally:
        engine.close()


def start_project(client: httpx.Client) -> int:
    made = client.post("/api/projects", json={"name": "one", "template": "static"}, headers={"Prefer": "wait=60"})
    assert made.json()["state"] == "ready", made.text
    project = int(made.json()["id"])
    start(client, project)
    return project


def start(client: httpx.Client, project: int) -> None:
    started = client.post(f"/api/projects/{project}/start", headers={"Prefer": "wait=60"})
    assert started.json()["dev_server"]["state"] == "running", started.text


def test_down_ends_a_stack(tmp_path: Path) -> None:
    environment = stack_environment(tmp_path / "data")
    running = RunningStack(environment)
    running.wait_line("postgres", "ready after")
    result = subprocess.run(
        [sys.executable, "-m", "workers.stack", "down"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert (result.returncode, running.wait_end()) == (0, 0)
    assert running.processes() == []
