"""The service by docker-compose.yml, on this machine's engine: images built here, `up`, a user's work, `down`.

The images have the names that the compose file gives them and hold the real programs, but for one: Temporal's server on
Postgres is in no package, so `temporalio/server` is the command line tool's own server here, which keeps its state in
its container, and no schema is laid for it (tests/testbed/images). What depends on Temporal's state outliving its
container, `down` and `up` again, is therefore not shown.
"""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

import httpx
import pytest

import docker
from tests.compose import ComposeStack
from tests.e2e.conftest import remove_containers
from tests.e2e.studio import Person, Project, Studio, until
from tests.e2e.tasks import call, give, results, script

pytestmark = [
    pytest.mark.docker,
    pytest.mark.compose,
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.timeout(2400),
]

CHANGED = "export default function App() {\n  return <h1>Changed in compose</h1>\n}\n"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    stack = ComposeStack(tmp_path_factory.mktemp("compose"))
    try:
        stack.up()
        for service in ("api", "litellm", "traefik", "worker"):
            stack.wait(service, lambda service=service: stack.is_well(service))  # type: ignore[misc]  # a bound default
        with closing(Studio(stack, "compose", tmp_path_factory.mktemp("shots"))) as studio:
            yield studio
    finally:
        stack.down()
        remove_containers(stack.name)
    assert stack.containers() == {}


def stack_of(studio: Studio) -> ComposeStack:
    return cast("ComposeStack", studio.stack)


@pytest.fixture(scope="module")
def ann(studio: Studio) -> Person:
    return studio.person("ann")


@pytest.fixture(scope="module")
def project(ann: Person) -> Project:
    return ann.start("vite-react", keep=True)


def test_api_and_previews_share_a_port(studio: Studio, project: Project) -> None:
    host = f"api.localhost:{studio.preview_port}"
    gateway = f"http://127.0.0.1:{studio.preview_port}"
    ready = httpx.get(f"{gateway}/readyz", headers={"Host": host}, timeout=15)
    assert ready.status_code == 200, ready.text
    assert {name: each["state"] for name, each in ready.json()["dependencies"].items()} == dict.fromkeys(
        ("postgres", "temporal", "runtime", "models"), "up"
    )
    assert project.knock().status_code == 401
    assert "Your app is live" in project.visit("/src/App.jsx").text
    project.put("src/App.jsx", CHANGED)
    until(lambda: "Changed in compose" in project.visit("/src/App.jsx").text, "the change, served")


def test_beside_the_server_the_api_works_through_the_worker(project: Project) -> None:
    """Commands and logs, which the API takes from the engine without holding its socket."""
    ran = project.run("id -u; echo oops >&2; exit 3")
    assert (ran["stdout"], ran["stderr"], ran["exit_code"]) == ("1000\n", "oops\n", 3)
    assert "VITE" in project.call("GET", "/logs").text


def test_the_agent_works_and_looks_at_its_page(project: Project) -> None:
    ended = give(
        project,
        script(call("search", pattern="Changed in"), call("run_command", command="cat src/App.jsx"), call("view_page")),
    ).completed(180)
    found, read, page = results(ended)
    assert "src/App.jsx" in found
    assert "Changed in compose" in read
    assert "Changed in compose" in page.partition("Visible text:")[2], page


def test_a_worker_killed_in_a_task_comes_back_and_ends_it(studio: Studio, project: Project) -> None:
    stack = stack_of(studio)
    waiting = "echo ran >> ran.txt; while [ ! -e go ]; do sleep 0.1; done; echo over"
    task = give(project, script(call("run_command", command=waiting, timeout_s=300), {"text": "Finished."}))
    until(lambda: project.call("GET", "/files/ran.txt").status_code == 200, "the command", timeout_s=60)
    before = stack.containers()["worker"].attrs["State"]["StartedAt"]
    stack.kill("worker")
    stack.wait("another start", lambda: stack.containers()["worker"].attrs["State"]["StartedAt"] != before)
    stack.wait("a worker that works", lambda: stack.is_well("worker"))
    project.put("go", "")
    ended = task.completed(180)
    assert project.call("GET", "/files/ran.txt").text == "ran\n"
    assert "over" in results(ended)[0]
    assert ended["steps"][-1]["text"] == "Finished."
    # The API and Traefik find the new worker's way to the engine.
    assert project.run("echo here")["stdout"] == "here\n"
    project.stop()
    project.start()
    assert project.visit().status_code == 200


def test_the_socket_is_the_workers_alone(studio: Studio, project: Project) -> None:
    stack = stack_of(studio)
    holders = [
        name
        for name, container in stack.containers().items()
        if any("docker.sock" in mount["Source"] for mount in container.attrs["Mounts"])
    ]
    assert holders == ["worker"]
    ask = (
        "import http.client, json, socket, sys\n"
        "c = http.client.HTTPConnection('docker'); c.sock = socket.socket(socket.AF_UNIX)\n"
        "c.sock.connect('/run/studio/engine.sock'); c.request('GET', sys.argv[1])\n"
        "print(c.getresponse().read().decode())"
    )
    with closing(docker.from_env()) as engine:
        api = engine.containers.get(str(stack.containers()["api"].id))
        shown, refused = (
            json.loads(cast("bytes", api.exec_run(["python", "-c", ask, path]).output))
            for path in ("/containers/json?all=1", f"/containers/{api.id}/json")
        )
    assert [each["Names"] for each in shown] == [[f"/{project.name}"]]
    assert "No such container" in refused["message"]


def test_a_project_reaches_nothing_of_the_house(studio: Studio, project: Project) -> None:
    networks = stack_of(studio).containers()["postgres"].attrs["NetworkSettings"]["Networks"].values()
    [(database, gateway)] = [(each["IPAddress"], each["Gateway"]) for each in networks]
    ports = [(database, "5432"), *((gateway, studio.stack.environment[name]) for name in ("API_PORT", "PREVIEW_PORT"))]
    for host, port in ports:
        ran = project.run(f"timeout 5 bash -c 'exec 3<>/dev/tcp/{host}/{port}' && echo reached")
        assert "reached" not in ran["stdout"], (host, port)
    assert project.run("timeout 5 bash -c 'exec 3<>/dev/tcp/127.0.0.1/$PORT' && echo reached")["stdout"] == "reached\n"


def test_nothing_listens_beyond_this_host(studio: Studio) -> None:
    for name, container in stack_of(studio).containers().items():
        for bound in (container.attrs["HostConfig"]["PortBindings"] or {}).values():
            assert {each["HostIp"] for each in bound} == {"127.0.0.1"}, name
    listening = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    everywhere = {line.split()[1] for line in listening if line.split()[3] == "0A"}
    assert f"00000000:{studio.preview_port:04X}" not in everywhere
    assert f"0100007F:{studio.preview_port:04X}" in everywhere
